export default { test: { include: ['**/*.spec.mjs'], fileParallelism: false, testTimeout: 30_000, hookTimeout: 30_000 } };
