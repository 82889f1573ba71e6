/** Configuration files: YAML or JSON, a flat object of options. */
import { readYamlFile } from '../io/yaml_file.ts';

/**
 * Reads a configuration file.
 * @throws FormatError naming file, line and column, or as readText does
 */
export async function readConfigFile(path: string): Promise<Record<string, unknown>> {
  const { values } = await readYamlFile(path, {
    noun: 'configuration',
    example: 'learning-rate: 2e-5',
  });
  return values;
}
