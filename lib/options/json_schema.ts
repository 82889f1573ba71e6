/** The JSON schema of a configuration file, which editors use to complete its keys and check its values. */
import { z } from 'zod';
import { kebab, type Option, type OptionTable, snake } from './option.ts';

type JsonSchema = Record<string, unknown>;

/**
 * The schema of a file that holds the options of a table by name. A key may be spelled with underscores, and a key without a
 * value counts as not given.
 * @param defaults default values to show, by the option's name in the library; an option without one may be absent
 */
export function jsonSchemaOf(
  table: OptionTable,
  { title, defaults }: { title: string; defaults: Readonly<Record<string, unknown>> },
): JsonSchema {
  const properties: JsonSchema = { $schema: { type: 'string' } };
  const otherSpellings: JsonSchema = {};
  for (const [key, option] of Object.entries(table)) {
    const name = kebab(key);
    const standard = defaults[key];
    const value = valueSchema(option);
    properties[name] = {
      description: option.help,
      ...(standard === undefined ? {} : { default: standard }),
      ...value,
    };
    // The spelling with underscores is accepted, but editors do not suggest it.
    if (snake(key) !== name) otherSpellings[`^${snake(key)}$`] = value;
  }
  return {
    $schema: 'http://json-schema.org/draft-07/schema#',
    title,
    type: 'object',
    properties,
    patternProperties: otherSpellings,
    additionalProperties: false,
  };
}

/** The schema of one option's value in a configuration file. */
function valueSchema({ schema, fileSchema = schema }: Option): JsonSchema {
  const { $schema: _, ...made } = z.toJSONSchema(fileSchema, {
    target: 'draft-7',
    io: 'input',
    unrepresentable: 'any',
    // The range of safe integers, which zod adds to every whole number, would only distract a reader.
    override: ({ jsonSchema }) => {
      if (jsonSchema.maximum === Number.MAX_SAFE_INTEGER) delete jsonSchema.maximum;
      if (jsonSchema.minimum === Number.MIN_SAFE_INTEGER) delete jsonSchema.minimum;
    },
  });
  return orNull(made as JsonSchema);
}

function orNull(schema: JsonSchema): JsonSchema {
  if (Array.isArray(schema.anyOf)) return { ...schema, anyOf: [...schema.anyOf, { type: 'null' }] };
  if (typeof schema.type !== 'string') return schema;
  const { enum: words } = schema as { enum?: readonly unknown[] };
  return {
    ...schema,
    type: [schema.type, 'null'],
    ...(words === undefined ? {} : { enum: [...words, null] }),
  };
}
