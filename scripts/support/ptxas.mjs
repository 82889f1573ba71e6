// Figures of ptxas for each kernel and architecture (nvcc -Xptxas=-v): registers, spills, stack and static shared memory.

const kEntry = /Compiling entry function '(\w+)' for '(sm_\d+)'/;
const kSpills = /(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads/;
const kUsed = /Used (\d+) registers(?:.*?(\d+) bytes smem)?/;

/**
 * The kernels in a build's output.
 * @returns [{ kernel, architecture, registers, stack, spilled, shared }]; shared is the part known at compile time
 */
export function parsePtxas(text) {
  const rows = [];
  let row = null;
  for (const line of text.split('\n')) {
    const entry = kEntry.exec(line);
    if (entry) {
      row = { kernel: readable(entry[1]), architecture: entry[2], stack: 0, spilled: 0, shared: 0 };
      continue;
    }
    const spills = kSpills.exec(line);
    if (spills && row) {
      row.stack = Number(spills[1]);
      row.spilled = Number(spills[2]) + Number(spills[3]);
    }
    const used = kUsed.exec(line);
    if (used && row) {
      rows.push({ ...row, registers: Number(used[1]), shared: Number(used[2] ?? 0) });
      row = null;
    }
  }
  return rows;
}

/** The last row of each kernel and architecture, because a log grows with every build. */
export function latestRows(text) {
  const latest = new Map();
  for (const row of parsePtxas(text)) latest.set(`${row.kernel} ${row.architecture}`, row);
  return [...latest.values()];
}

/** Short name of a mangled one in an anonymous namespace, with file and function: `attention: flash_forward<...>`. */
function readable(mangled) {
  const local = /_GLOBAL__N__[0-9a-f]+_\d+_(\w+?)_cu_[0-9a-f]{8}(?:_\d*?)?(\d+)([a-z]\w*)$/.exec(
    mangled,
  );
  if (!local) return plain(mangled);
  const [, file, digits, rest] = local;
  // The digits end in the name's length; those before it belong to the compiler's tag.
  const length = [digits.slice(-2), digits.slice(-1)]
    .map(Number)
    .find((n) => /^[IEv]/.test(rest.slice(n)));
  if (!length) return mangled;
  return `${file}: ${rest.slice(0, length)} ${rest.slice(length)}`;
}

/** Number of registers of a multiprocessor, 65,536 on all supported architectures; warps get them in units of 256. */
const kRegisters = 65536;
const kUnit = 256;
/** Limits of a multiprocessor: warps, blocks, bytes of shared memory (CUDA C++ Programming Guide, technical specifications). */
const kLimits = {
  sm_80: { warps: 64, blocks: 32, shared: 164 << 10 },
  sm_86: { warps: 48, blocks: 16, shared: 100 << 10 },
  sm_89: { warps: 48, blocks: 24, shared: 100 << 10 },
  sm_90: { warps: 64, blocks: 32, shared: 228 << 10 },
};
/** Bytes of each block's shared memory that the system reserves. */
const kReserved = 1024;

/**
 * Share of a multiprocessor's warps that are resident at once, in blocks of `threads`, by registers and shared memory.
 * @param row `registers`, `architecture` and `shared`, the static shared memory of a block in bytes
 * @param dynamic bytes that the launch requests in addition
 */
export function occupancy({ registers, architecture, shared = 0 }, threads, dynamic = 0) {
  const most = kLimits[architecture];
  if (!most) throw new Error(`the limits of ${architecture} are not known`);
  const warps = Math.ceil(threads / 32);
  const perWarp = Math.ceil((registers * 32) / kUnit) * kUnit;
  const blocks = Math.min(
    Math.floor(Math.floor(kRegisters / perWarp) / warps),
    Math.floor(most.shared / (shared + dynamic + kReserved)),
    Math.floor(most.warps / warps),
    most.blocks,
  );
  return (blocks * warps) / most.warps;
}

/** Short name of a kernel that is not in an anonymous namespace: `sum_products ILi128E...`. */
function plain(mangled) {
  const found = /^_ZN6balora4cuda(\d+)([a-z]\w*)$/.exec(mangled);
  if (!found) return mangled;
  const [, length, rest] = found;
  return `${rest.slice(0, Number(length))} ${rest.slice(Number(length))}`;
}
