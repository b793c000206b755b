"""The events of the contract, described for those who write clients: types for TypeScript, and an AsyncAPI document."""
