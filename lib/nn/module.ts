/**
 * Base class of modules. Parameters and children are found by reflection: attributes that are tensors are parameters, attributes that
 * are modules or arrays of modules are children, all others are ignored. Attributes are named as in the checkpoint
 * (self_attn.q_proj), so a parameter's path is its name in the file and there is no second list of names.
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

  /** Every parameter with its path; a tied one, which several modules hold, once under its first path. */
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
    let module: Module = this;
    for (const name of childNames(path)) {
      const below = new Map(children(module));
      const found = below.get(name);
      if (!found) {
        const known = [...below.keys()].join(', ') || 'none';
        throw new ArgumentError(`no module "${path}"; known in place of "${name}": ${known}`);
      }
      module = found;
    }
    return module;
  }

  /** Makes modules children, each at a path below this one, in modules that only hold others. */
  protected place(placed: Readonly<Record<string, Module | readonly Module[]>>): void {
    for (const [path, module] of Object.entries(placed)) {
      const names = path.split('.');
      const last = names.pop() as string;
      let at = this as unknown as Record<string, unknown>;
      for (const name of names) {
        at[name] ??= new Module();
        at = at[name] as Record<string, unknown>;
      }
      at[last] = module;
    }
  }

  /** Replaces a parameter in every module that holds it. The caller disposes of the old tensor. */
  replaceParameter(old: Tensor, replacement: Tensor): void {
    for (const [, module] of this.namedModules()) {
      const attributes = module as unknown as Record<string, unknown>;
      for (const [name, value] of Object.entries(attributes)) {
        if (value === old) attributes[name] = replacement;
      }
    }
  }

  /** Frees every parameter. */
  dispose(): void {
    for (const parameter of this.parameters()) parameter.dispose();
  }

  /** Frees every parameter at the end of a `using` block. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** The children of a module by their names: `q_proj`, and `layers.0` for members of an array. */
function* children(module: Module): Generator<[string, Module]> {
  for (const [name, value] of Object.entries(module)) {
    if (value instanceof Module) yield [name, value];
    if (!Array.isArray(value)) continue;
    for (const [index, item] of value.entries()) {
      if (item instanceof Module) yield [`${name}.${index}`, item];
    }
  }
}

/** The names on a path as children() gives them: an index belongs to the name before it, `layers.0`. */
function childNames(path: string): string[] {
  return path === '' ? [] : path.split(/\.(?!\d+(?:\.|$))/);
}

function join(prefix: string, name: string): string {
  return prefix === '' ? name : `${prefix}.${name}`;
}
