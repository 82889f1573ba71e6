/** The small model that comes with the package. */
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const kPackageRoot = dirname(dirname(dirname(fileURLToPath(import.meta.url))));

/**
 * Folder of a LLaMA-architecture checkpoint of 2.6 million weights (bf16, 5 MB) with its tokenizer, for first steps and
 * examples without a download. It was pre-trained by this library on the State of the Union addresses
 * (examples/demo/README.md) and knows little else.
 */
export const demoCheckpoint: string = join(kPackageRoot, 'examples', 'demo', 'checkpoint');
