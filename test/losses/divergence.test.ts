/**
 * The consistency term over the whole range of its temperature: values and gradients of the fused and the plain forms against loops
 * in f64, exactly 0 for equal logits and never below, and the limits with the name of the option.
 */
import { describe, expect, it } from 'vitest';
import { BaLoraLoss } from '../../lib/losses/head_loss.ts';
import { consistencyLoss, nluConsistencyLoss } from '../../lib/losses/index.ts';
import { NluLoss } from '../../lib/losses/logits_loss.ts';
import { headLosses, matmul, teacherSummary } from '../../lib/ops/index.ts';
import { noGrad, type Tensor, tensor } from '../../lib/tensor.ts';
import { resolveRegularizers } from '../../lib/train/regularizers.ts';
import { onDevice } from '../support/device.ts';
import { relativeError } from '../support/fixtures.ts';
import { randomTensor } from '../support/gradcheck.ts';
