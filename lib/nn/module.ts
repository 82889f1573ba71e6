/**
 * Modules by reflection: attributes are named as in the checkpoint (self_attn.q_proj), so a parameter's path is its
 * name in the file and there is no second list to keep. Attributes that are tensors are parameters, attributes that are
 * modules, or arrays of modules, are children; anything else is not looked at.
 */
import { ArgumentError } from '../errors.ts';
import { Tensor } from '../tensor.ts';

/** A part of a model: it names its parameters by the paths that its attributes form, as in a checkpoint. */
export class Module {
  /** This module and everything below it, each with its path ('' for this one), parents first. */
  *namedModules(prefix = ''): Generator<[string, Module]> {
    yield [prefix, this];
    for (const [name, child] of children(this)) yield* child.namedModules(join(prefix, name));
  }

  /** Every parameter with its path; one that stands in two places (tied) comes once, under its first. */
  *namedParameters(): Generator<[string, Tensor]> {
    const seen = new Set<Tensor>();
    for (const [path, module] of this.namedModules()) {
      for (const [name, value] of Object.entries(module)) {
        if (!(value instanceof Tensor) || seen.has(value)) continue;
        seen.add(value);
        yield [join(path, name), value];
      }
    }
  }

  /** All parameters, in the order of their paths. */
  parameters(): Tensor[] {
    return Array.from(this.namedParameters(), ([, parameter]) => parameter);
  }

  /** The module at a path. @throws ArgumentError with the names beside it */
  module(path: string): Module {
    let at: Module = this;
    for (const [name, rest] of steps(path)) {
      const found = new Map(children(at)).get(name);
      if (!found) {
        const names = Array.from(children(at), ([child]) => child).join(', ');
        throw new ArgumentError(`no module "${path}": at "${rest}" there are ${names || 'none'}`);
      }
      at = found;
    }
    return at;
  }

  /** Puts another tensor in a parameter's place, wherever it stands (tied places too). The old one is the caller's. */
  replaceParameter(old: Tensor, replacement: Tensor): void {
    for (const [, module] of this.namedModules()) {
      const attributes = module as unknown as Record<string, unknown>;
      for (const [name, value] of Object.entries(attributes)) {
        if (value === old) attributes[name] = replacement;
      }
    }
  }

  /** Gives every parameter back. */
  dispose(): void {
    for (const parameter of this.parameters()) parameter.dispose();
  }

  /** `using` frees it at the end of its block. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** Children under their path below the module: `q_proj`, and `layers.0` for arrays. */
function* children(module: Module): Generator<[string, Module]> {
  for (const [name, value] of Object.entries(module)) {
    if (value instanceof Module) yield [name, value];
    if (!Array.isArray(value)) continue;
    for (const [index, item] of value.entries()) {
      if (item instanceof Module) yield [`${name}.${index}`, item];
    }
  }
}

/** Parts of a path as children() names them (an index belongs to the name before), with the whole for errors. */
function steps(path: string): [string, string][] {
  const parts = path === '' ? [] : path.replace(/\.(\d+)(?=\.|$)/g, '/$1').split('.');
  return parts.map((part) => [part.replace('/', '.'), path]);
}

function join(prefix: string, name: string): string {
  return prefix === '' ? name : `${prefix}.${name}`;
}
