// The public surface: re-exports only.
export {};
