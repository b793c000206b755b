export default {
  cacheDir: '../../../node_modules/.vite',
  test: { include: ['**/*.spec.mjs'], fileParallelism: false, testTimeout: 60_000, hookTimeout: 60_000 },
};
