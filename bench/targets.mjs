// The performance targets of balora, and the figures of a report that they are compared with. `reached` returns the figure as text
// and whether it meets the target, or null where nothing was measured; `name` is what a page then calls the target, `what` by default.

const find = (rows, name, dtype = 'bf16') =>
  rows.find((row) => row.name === name && row.dtype === dtype && row.kind !== 'unavailable');
const times = (value) => `${value.toFixed(2)}x`;
const part = (value) => `1/${value.toFixed(2)}`;
const percent = (share) => `${(100 * share).toFixed(0)}%`;
const seconds = (value) => `${value.toFixed(2)} s`;

/** A figure of a row that was run in turns with torch. */
const paired = (name, dtype, pick) => (rows) => {
  const row = find(rows, name, dtype);
  return row?.torch ? pick(row) : null;
};
/** `bounded`: whether the ceiling, of products in the row's dtype, bounds it; products in int8 may be above. */
const speed = (name, dtype, least, { bounded = true } = {}) =>
  paired(name, dtype, ({ torch, tokensPerSecond, seconds: step, ceilingSeconds }) => {
    const { speedRatio, tokensPerSecond: theirs } = torch;
    const rates = `${tokensPerSecond.toFixed(0)} against ${theirs.median.toFixed(0)} tokens/s`;
    const ceiling =
      bounded && ceilingSeconds
        ? `; ceiling ${times((speedRatio.median * step.median) / ceilingSeconds)}`
        : '';
    const text = `${times(speedRatio.median)} (${rates}${ceiling})`;
    return { text, met: speedRatio.median >= least };
  });
/** Peak memory of the encoder's step in transformers and peft, in bytes; the plain torch script needs less. */
const kPeftMiniLm = 1379.96 * 2 ** 20;
const encoderMemory = (rows) => {
  const found = ['f32', 'bf16'].map((dtype) => find(rows, 'minilm-sst2', dtype)).filter(Boolean);
  if (found.length === 0) return null;
  const texts = found.map((row) => {
    const mib = (row.peakBytes / 2 ** 20).toFixed(0);
    return `${row.dtype} ${part(kPeftMiniLm / row.peakBytes)} (${mib} MiB)`;
  });
  return { text: texts.join(', '), met: found.every((row) => kPeftMiniLm / row.peakBytes >= 2) };
};
const ratio = (name, most) => (rows) => {
  const row = find(rows, name);
  return row ? { text: times(row.value), met: row.value <= most } : null;
};

const atLeast = (name, least) => (rows) => {
  const row = find(rows, name);
  return row ? { text: times(row.value), met: row.value >= least } : null;
};
const share = (name, least) => (rows) => {
  const row = find(rows, name);
  return row ? { text: percent(row.value), met: row.value >= least } : null;
};

/** Seconds of PiSSA's initialisation, and its captured energy, which must not be below torch's. */
const pissa = (name, most) => (rows) => {
  const row = find(rows, name);
  if (!row) return null;
  const beside = row.torch
    ? `; torch ${seconds(row.torch.seconds.median)}, ${row.torch.capturedEnergy.toFixed(6)}`
    : '';
  const text = `${seconds(row.seconds.median)}, energy ${row.capturedEnergy.toFixed(6)}${beside}`;
  const enough = row.capturedEnergy >= (row.torch?.capturedEnergy ?? 0) - kEnergySlack;
  return { text, met: row.seconds.median <= most && enough };
};
/** Tolerance of the energy: both sides converge to within 1e-5 of the remaining norm. */
const kEnergySlack = 1e-5;

function smallestMemory(rows) {
  const [small, plain] = [find(rows, 'balora-4x512-memory-min'), find(rows, 'balora-4x512')];
  const time = find(rows, 'memory-min-time');
  const theirs = small?.torch?.peakBytes ?? plain?.torch?.peakBytes;
  if (!small || !theirs) return null;
  const gib = (bytes) => `${(bytes / 2 ** 30).toFixed(2)} GiB`;
  const slower = time ? `, ${times(time.value)} the time` : '';
  const text = `${part(theirs / small.peakBytes)} (${gib(small.peakBytes)} of ${gib(theirs)})${slower}`;
  return { text, met: theirs / small.peakBytes >= 8 && time?.value <= 1.4 };
}

function longOverShort(rows) {
  const [time, memory] = ['long-over-short-time', 'long-over-short-memory'].map((name) =>
    find(rows, name),
  );
  if (!time || !memory) return null;
  const text = `time ${times(time.value)}, memory ${times(memory.value)}`;
  return { text, met: time.value <= 1.6 && memory.value <= 1.1 };
}

const ceilingShare = (least) => (rows) => {
  const row = find(rows, 'balora-4x512');
  if (!row?.ceilingSeconds) return null;
  const reached = row.ceilingSeconds / row.seconds.median;
  return { text: percent(reached), met: reached >= least };
};

/** Attention's share in a BA-LoRA step, whose teacher runs a second forward. */
const attentionShare = (least) => (rows) => {
  const [forward, backward] = ['', '-backward'].map((end) => find(rows, `micro-attention${end}`));
  if (!forward || !backward) return null;
  const ideal = 2 * forward.seconds.median * forward.ceilingShare;
  const taken = 2 * forward.seconds.median + backward.seconds.median;
  const reached = (ideal + backward.seconds.median * backward.ceilingShare) / taken;
  const parts = [forward, backward].map(({ ceilingShare: part }) => percent(part));
  const text = `${(100 * reached).toFixed(1)}% (forward ${parts[0]}, backward ${parts[1]})`;
  return { text, met: reached >= least };
};

const headShare = (least) => (rows) => {
  const row = find(rows, 'micro-head-losses');
  return row ? { text: percent(row.ceilingShare), met: row.ceilingShare >= least } : null;
};

function int8Gain(rows) {
  const row = find(rows, 'int8-over-bf16');
  return row ? { text: times(1 / row.value), met: 1 / row.value >= 1.15 } : null;
}

/** Targets that depend on the instructions with which the processor multiplies bf16. */
const kAmx = { name: 'AMX', speed: [6, '10x'], roofline: [0.25, '40%'], parts: 0.6 };
const kAvx512 = {
  ...{ name: 'AVX512-BF16', speed: [4, '6x'], roofline: [0.5, '70%'], parts: 0.8 },
  ceiling: [0.85, '90%'],
};

/** The targets for the machine of a report. */
export function targetsOf({ features }) {
  const unit = features.includes('amx_bf16') ? kAmx : kAvx512;
  return [
    {
      what: `BA-LoRA 4 x 512, bf16, tokens/s over torch, on ${unit.name}`,
      ...{ must: `>= ${unit.speed[0]}x`, aim: unit.speed[1] },
      reached: speed('balora-4x512', 'bf16', unit.speed[0]),
    },
    {
      what: `share of the step's own product roofline, bf16, on ${unit.name}`,
      ...{ must: `>= ${percent(unit.roofline[0])}`, aim: unit.roofline[1] },
      reached: (rows) => {
        const row = find(rows, 'balora-4x512');
        if (!row) return null;
        return { text: percent(row.rooflineShare), met: row.rooflineShare >= unit.roofline[0] };
      },
    },
    ...(unit.ceiling
      ? [
          {
            what: 'the same of its ceiling, which includes attention',
            name: 'share of the ceiling',
            ...{ must: `>= ${percent(unit.ceiling[0])}`, aim: unit.ceiling[1] },
            reached: ceilingShare(unit.ceiling[0]),
          },
        ]
      : []),
    {
      what: "attention of a BA-LoRA step, bf16: share of the packed product's rate",
      ...{ name: kKernels, must: `>= ${percent(unit.parts)}`, aim: '' },
      reached: attentionShare(unit.parts),
    },
    {
      ...{ what: 'the head with its losses: the same', name: kKernels },
      ...{ must: `>= ${percent(unit.parts)}`, aim: '', reached: headShare(unit.parts) },
    },
    ...kTargets,
  ];
}

/** Names of targets that are measured together. */
const [kMiniLm, kText] = ['MiniLM on SST-2', 'text generation'];
const [kKernels, kInt8] = ['attention and the head', 'products in int8'];

const kTargets = [
  {
    what: 'BA-LoRA 4 x 512, teacher and dX in int8, tokens/s over bf16',
    ...{ name: kInt8, must: '>= 1.15x', aim: '1.3x', reached: int8Gain },
  },
  {
    what: 'BA-LoRA 4 x 512, kept teacher and all products in int8, over torch',
    ...{ name: kInt8, must: '>= 5.5x', aim: '6.4x' },
    reached: speed('balora-4x512-cache-teacher-int8', 'bf16', 5.5, { bounded: false }),
  },
  {
    ...{ what: 'BA-LoRA 4 x 512, f32', must: '>= 3x', aim: '4x' },
    reached: speed('balora-4x512', 'f32', 3),
  },
  {
    ...{ what: 'BA-LoRA on GSM8K, bf16, real tokens', must: '>= 5x', aim: '8x' },
    reached: speed('balora-gsm8k', 'bf16', 5),
  },
  {
    ...{ what: 'LoRA 4 x 512, bf16', must: '>= 2.5x', aim: '4x' },
    reached: speed('lora-4x512', 'bf16', 2.5),
  },
  {
    ...{ what: 'peak memory of BA-LoRA 4 x 512, bf16, over torch', must: '<= 1/4', aim: '1/6' },
    reached: paired('balora-4x512', 'bf16', ({ torch, peakBytes }) => {
      const gib = (bytes) => (bytes / 2 ** 30).toFixed(2);
      const text = `${part(torch.memoryRatio.median)} (${gib(peakBytes)} of ${gib(torch.peakBytes)} GiB)`;
      return { text, met: torch.memoryRatio.median >= 4 };
    }),
  },
  {
    what: 'the same with `--memory-budget min`, at no more than 1.4x the time',
    name: '`--memory-budget min`',
    ...{ must: '<= 1/8', aim: '1/10', reached: smallestMemory },
  },
  {
    ...{ what: 'BA-LoRA step over our LoRA step, live teacher', must: '<= 1.7x', aim: '1.55x' },
    reached: ratio('balora-over-lora', 1.7),
  },
  {
    what: 'the same with `--cache-teacher`, from the second epoch on',
    name: '`--cache-teacher`',
    ...{ must: '<= 1.25x', aim: '1.2x', reached: ratio('cache-teacher-over-lora', 1.25) },
  },
  {
    ...{ what: 'PiSSA to convergence, 210 layers, r 16', must: '<= 2 s', aim: '1 s' },
    reached: pissa('pissa-converged', 2),
  },
  {
    what: "PiSSA randomized, niter 16, energy no worse than torch's",
    ...{ must: '<= 0.5 s', aim: '0.3 s', reached: pissa('pissa-niter-16', 0.5) },
  },
  {
    what: 'process start to the first step, GGUF, method lora, warm file',
    ...{ must: '<= 2 s', aim: '1 s' },
    reached: (rows) => {
      const row = find(rows, 'start-lora');
      if (!row) return null;
      return { text: seconds(row.seconds.median), met: row.seconds.median <= 2 };
    },
  },
  {
    what: '1 x 2048 over 8 x 256 tokens',
    ...{ must: 'time <= 1.6x, memory <= 1.1x', aim: '', reached: longOverShort },
  },
  {
    what: 'threads 1 to 2: gain of the step over the gain of the packed product',
    ...{ must: '>= 0.9', aim: '' },
    reached: (rows) => {
      const row = find(rows, 'threads-1-2');
      return row ? { text: row.value.toFixed(2), met: row.value >= 0.9 } : null;
    },
  },
  {
    ...{
      what: 'LoRA step of MiniLM on SST-2, batch 16, f32',
      name: kMiniLm,
      must: '>= 2x',
      aim: '',
    },
    reached: speed('minilm-sst2', 'f32', 2),
  },
  {
    ...{ what: 'the same in bf16, over torch in f32', name: kMiniLm, must: '>= 3x', aim: '' },
    reached: speed('minilm-sst2', 'bf16', 3),
  },
  {
    what: 'its peak memory, of the 1380 MiB that transformers and peft took in f32',
    name: kMiniLm,
    ...{ must: '<= 1/2', aim: '', reached: encoderMemory },
  },
  {
    ...{
      what: 'decoding one sequence, of the bound of reading the weights',
      name: kText,
      must: '>= 70%',
    },
    ...{ aim: '', reached: share('decode-bandwidth', 0.7) },
  },
  {
    ...{ what: '16 sequences over one, tokens/s', name: kText, must: '>= 8x', aim: '' },
    reached: atLeast('decode-16-sequences', 8),
  },
  {
    ...{
      what: 'a prompt over the training forward of its rows, tokens/s',
      name: kText,
      must: '>= 0.9x',
    },
    ...{ aim: '', reached: atLeast('prefill-over-forward', 0.9) },
  },
  {
    ...{
      what: 'decoding over llama.cpp on the same weights in bf16',
      name: kText,
      must: '>= 2x',
      aim: '',
    },
    reached: atLeast('decode-over-llama', 2),
  },
  {
    ...{ what: 'a prompt of 512 tokens over llama.cpp', name: kText, must: '>= 2x', aim: '' },
    reached: atLeast('prefill-over-llama', 2),
  },
];
