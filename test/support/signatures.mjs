// The types of the addon's functions, from the TypeScript that native.signatures has for each: `(x: Handle, eps: number): Handle`.

/**
 * @param {{ typescript: string }} signature
 * @returns {[name: string, type: string][]} the parameters
 */
export function parametersOf({ typescript }) {
  const inside = typescript.slice(1, typescript.lastIndexOf('): '));
  return inside === '' ? [] : inside.split(/, (?=\w+: )/).map(pair);
}

/**
 * @param {string} type of an object, `{ a: Handle; b: { c: number } }`
 * @returns {[name: string, type: string][]} its fields
 */
export function fieldsOf(type) {
  const fields = [''];
  let depth = 0;
  for (const c of type.slice(1, type.lastIndexOf('}'))) {
    if (c === '{') ++depth;
    if (c === '}') --depth;
    if (c === ';' && depth === 0) fields.push('');
    else fields[fields.length - 1] += c;
  }
  return fields.map(pair);
}

const pair = (text) => text.trim().split(/: (.*)/s, 2);
