/** The JSON schema of a configuration file, which editors use to complete its keys and check its values. */
import { z } from 'zod';
import { helpOf, kebab, type Option, type OptionTable, spellings } from './option.ts';

type JsonSchema = Record<string, unknown>;

/**
 * The schema of a file that holds the options of a table by name. A key may be spelled as in the library or with underscores, and
 * a key without a value counts as not given.
 * @param defaults default values to show, by the option's name in the library; an option without one may be absent
 */
export function jsonSchemaOf(
  table: OptionTable,
  { title, defaults }: { title: string; defaults: Readonly<Record<string, unknown>> },
): JsonSchema {
  const properties: JsonSchema = { $schema: { type: ['string', 'null'] } };
  const otherSpellings: JsonSchema = {};
  for (const [key, option] of Object.entries(table)) {
    const name = kebab(key);
    const value = valueSchema(option);
    properties[name] = {
      description: helpOf(option, kebab),
      default: defaults[key],
      ...value,
    };
    // The other spellings are accepted, but editors do not suggest them.
    const others = spellings(key).filter((spelling) => spelling !== name);
    if (others.length > 0) otherSpellings[`^(${others.join('|')})$`] = value;
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
    override: ({ jsonSchema }) => {
      // Lists that the library freezes are marked as read-only, which means something else to an editor.
      delete jsonSchema.readOnly;
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
    enum: words && [...words, null],
  };
}
