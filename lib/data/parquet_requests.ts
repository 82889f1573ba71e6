/** Requests of `ParquetFile` to the process that reads the file (parquet_process.ts), and the answers. */

/** The footer, or the rows from `start` to `end`; no more than those in one row group are returned. */
export type ParquetRequest = 'footer' | { readonly start: number; readonly end: number };

/** Rows of each row group, as the footer says. */
export interface ParquetFooter {
  readonly groups: readonly { readonly rows: number }[];
}
