// Numbers of CPython 3.11: random.Random(1234).
import { expect, it } from 'vitest';
import { PythonRandom } from '../../lib/eval/python_random.ts';

it('draws the samples of Python, one after the other', () => {
  const random = new PythonRandom(1234);
  expect(random.sample(7473, 5)).toEqual([6374, 3610, 957, 61, 742]);
  expect(random.sample(7473, 5)).toEqual([7462, 6610, 4769, 286, 5501]);
  expect(random.sample(7473, 5)).toEqual([5677, 687, 806, 6279, 2905]);
});

it('chooses between a pool and a set as Python does', () => {
  const random = new PythonRandom(1234);
  expect(random.sample(10, 5)).toEqual([7, 1, 0, 9, 4]);
  expect(random.sample(20, 6)).toEqual([1, 2, 3, 11, 7, 0]);
  expect(random.sample(100, 6)).toEqual([3, 2, 44, 82, 79, 61]);
  expect(random.sample(100, 30)).toEqual([
    78, 59, 19, 11, 23, 91, 14, 1, 64, 62, 31, 8, 85, 69, 98, 88, 76, 96, 65, 74, 5, 34, 71, 84, 38,
    61, 45, 99, 89, 25,
  ]);
});

it('has the bits of Python beyond one state of the generator', () => {
  const random = new PythonRandom(0);
  expect(Array.from({ length: 4 }, () => random.word())).toEqual([
    3626764237, 1654615998, 3255389356, 3823568514,
  ]);
  const later = Array.from({ length: 1300 }, () => random.word());
  expect(later.at(-1)).toBe(3811075795);
});

it('draws below any size', () => {
  const random = new PythonRandom(2 ** 32 - 1);
  const sizes = [1, 2, 3, 1000, 2 ** 31 + 1, 2 ** 32 - 1];
  expect(sizes.map((size) => random.below(size))).toEqual([0, 0, 2, 534, 1251276551, 2590083323]);
});

it('refuses what Python refuses', () => {
  expect(() => new PythonRandom(-1)).toThrow(/seed must be a whole number from 0/);
  expect(() => new PythonRandom(1).sample(3, 4)).toThrow(/cannot draw 4 different ones of 3/);
});
