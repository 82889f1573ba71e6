/** The environment variables that the benchmark was started with, for PyTorch: the library adds some for its own threads. */
export const kGivenEnvironment: Readonly<NodeJS.ProcessEnv> = { ...process.env };
