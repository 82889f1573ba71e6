/** `balora schema`: prints the JSON schema of a configuration file, for editors. */
import { jsonSchemaOf } from '../options/json_schema.ts';
import { shownDefaults } from './command_options.ts';
import { fileOptions } from './option_table.ts';
import type { CommandModule } from './program.ts';
import { kTrainOptions } from './train_options.ts';

export const addSchema: CommandModule = (program, { stdout }, run) => {
  program
    .command('schema')
    .description('the JSON schema of a configuration file of train, for editors')
    .action(
      run({}, async () => {
        const table = fileOptions(kTrainOptions);
        const schema = jsonSchemaOf(table, {
          title: 'Options of balora train',
          defaults: shownDefaults(table),
        });
        stdout.write(`${JSON.stringify(schema, null, 2)}\n`);
        return 0;
      }),
    );
};
