/** README.md holds: its examples print what it says, its tables agree with the scripts, its links lead somewhere. */
import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { test } from 'node:test';
import { cannotRun, LIMIT, noNc, run, start, takeTurns, tsNode } from './scripts';

const README = readFileSync('README.md', 'utf8');
const SCRIPTS = ['portscanner.ts', 'server.ts', 'client.ts'];

takeTurns(); // with the other file whose tests use the documented port

/** The blocks of code of one language, in order. */
const blocks = (language: string) =>
  [...README.matchAll(/^```(\w*)\n([^]*?)\n```$/gm)].flatMap(([, kind, text = '']) => kind === language ? [text] : []);

/** The rows of the tables whose header begins with the titles, each row a list of cells. */
function rows(text: string, ...titles: string[]): string[][] {
  const cells = (line: string) =>
    line.split(/(?<!\\)\|/).slice(1, -1).map((cell) => cell.trim().replaceAll('\\|', '|'));
  const tables = text.match(/^(\|.*\|\n)+/gm) ?? [];
  return tables.map((table) => table.trimEnd().split('\n').map(cells))
    .filter(([header = []]) => titles.every((title, index) => header[index] === title))
    .flatMap(([, , ...body]) => body);
}

/** What stands under a heading, up to the next one of any level. */
const section = (title: string) => README.split(/^#+ /m).find((text) => text.startsWith(`${title}\n`)) ?? '';

/** The text of a cell without the marks of code. */
const plain = (cell: string) => cell.replaceAll('`', '');

/** A pattern for what an example prints. The system chooses some numbers: ports of clients, file descriptors. */
function pattern(output: string): RegExp {
  const escaped = output.replace(/[\\^$.*+?()[\]{}|]/g, '\\$&');
  const numbers = escaped.replace(/(127\\\.0\\\.0\\\.1:)58666/g, '$1\\d+')
    .replace(/(?<=\\\) = )18$/m, '(?<listening>\\d+)').replace(/\\\(18,/g, '\\(\\k<listening>,')
    .replace(/(?<=\\\) = )19$/m, '(?<accepted>\\d+)').replace(/\\\(19,/g, '\\(\\k<accepted>,');
  return new RegExp(`^${numbers}\n$`);
}

/** Why the program that a command begins with, or pipes into, can't be run here; false where it can. */
function cannotTry(command: string): string | false {
  if (/^npx ts-node (portscanner|server|client)\.ts/.test(command)) return false;
  if (/^strace -f \S+ \S+ npx ts-node server\.ts /.test(command)) return cannotRun('strace', '-f', 'true');
  if (/^printf '[^']*' \| nc /.test(command)) return noNc();
  throw new Error(`an example of README.md that the tests do not know how to run: ${command}`);
}

/** The examples, each a list of terminals: one that starts server.ts is followed by the one that talks to it. */
const EXAMPLES: [command: string, output: string][][] = [];
for (const text of blocks('console')) {
  const [, command = '', output = ''] = /^\$ (.*)\n([^]*)$/.exec(text) ?? [];
  const before = EXAMPLES.at(-1);
  if (before?.length === 1 && before[0]?.[0].includes('server.ts')) before.push([command, output]);
  else EXAMPLES.push([[command, output]]);
}

for (const terminals of EXAMPLES) {
  const commands = terminals.map(([command]) => command);
  const skip = commands.map(cannotTry).find((reason) => reason) ?? false;
  test(`the README's example prints what it says: ${commands.join(' and ')}`, { ...LIMIT, skip }, async (t) => {
    const outputs: Promise<string>[] = [];
    for (const [command] of terminals) {
      const terminal = start(t, ['sh', '-c', `exec 2>&1; ${command}`]);
      outputs.push(terminal.ended.then(({ stdout }) => stdout.replace(/\n?$/, '\n')));
      if (command.includes('server.ts')) await terminal.printed(/listen(ing|\().*\n/);
    }
    for (const [index, [, output]] of terminals.entries()) assert.match(await outputs[index] ?? '', pattern(output));
  });
}

test('the README has examples of every script', () => {
  for (const script of SCRIPTS) assert.ok(EXAMPLES.flat().some(([command]) => command.includes(script)), script);
});

test('every block of code in the README is of a kind that is tested', () => {
  const languages = [...README.matchAll(/^```(.*)\n[^]*?\n```$/gm)].map(([, language]) => language);
  assert.deepEqual([...new Set(languages)].sort(), ['console', 'mermaid', 'sh']);
});

test('the quick start is two commands: one runs an example, one runs the tests', () => {
  const [example, tests, ...more] = blocks('sh');
  assert.deepEqual(more, []);
  assert.equal(example, `npm ci && ${EXAMPLES[0]?.[0]?.[0]}`);
  assert.equal(tests, 'npm ci && npm test');
});

for (const script of SCRIPTS) {
  test(`the README's table of arguments agrees with the help of ${script}`, LIMIT, async (t) => {
    const help = (await run(t, tsNode(script, '--help'))).stdout;
    const usage = /^Usage: (.*)\n/.exec(help)?.[1];
    assert.ok(section(script).includes(`\`${usage}\``), `usage line ${usage}`);

    const entries = help.split(/\n(?= +(?:-\w, |--|\w+ {2}))/).slice(1);
    const listed = entries.map((entry) => entry.trim().replace(/\s+/g, ' '));
    const table = rows(section(script), 'argument', 'what it is', 'default').map((row) => row.map(plain));
    for (const [names, what, value] of table) {
      const entry = listed.find((text) => text.startsWith(`${names} `)) ?? '';
      assert.ok(entry.startsWith(`${names} ${what}`), `${names}: ${what} is not in ${help}`);
      if (value === 'required') assert.match(entry, /\[required\]/);
      else if (value) assert.ok(entry.includes(`default: ${value}`), `${names}: default ${value}`);
      else assert.doesNotMatch(entry, /\[required\]|default: (?!false)/);
    }
    assert.equal(table.length, listed.length, help);
  });

  test(`the errors that the README explains are those of ${script}`, () => {
    const source = readFileSync(script, 'utf8');
    const errors = rows(section(script), 'error', 'what it means').map(([error = '']) => plain(error));
    assert.ok(errors.length > 0);
    for (const error of errors) {
      const constant = error.split(/HOST|ADDRESS|port N|\b[NM]\b|\bE[A-Z]+\b|\b10\b/);
      for (const words of constant) assert.ok(source.includes(words.trim()), error);
    }
  });

  test(`the lines of ${script} that the README names are in it`, () => {
    const source = readFileSync(script, 'utf8');
    const lines = rows(README, 'Python', 'system call', script).map(([, , line = '']) => plain(line));
    assert.ok(lines.length > 0);
    for (const line of lines) assert.ok(source.includes(line), line);
  });
}

test('the first diagram shows each documented line of server and client, in order', () => {
  const [diagram = ''] = blocks('mermaid');
  const notes = (side: string) =>
    [...diagram.matchAll(new RegExp(`Note ${side}: (.*)`, 'g'))].map(([, line]) => line).join('\n');
  const outputs = EXAMPLES.flat().map(([, output]) => output);
  assert.ok(outputs.includes(notes('left of S')));
  assert.ok(outputs.includes(notes('right of C')));
});

test('the diagrams are sequence diagrams of Mermaid', () => {
  const statement = /^ {4}(participant \w+ as .+|Note (left of|right of|over) \w+(,\w+)?: .+|\w+(->>|-x)\w+: .+)$/;
  const diagrams = blocks('mermaid');
  assert.equal(diagrams.length, 2);
  for (const diagram of diagrams) {
    const [kind, ...statements] = diagram.split('\n');
    assert.equal(kind, 'sequenceDiagram');
    const participants = [...diagram.matchAll(/participant (\w+)/g)].map(([, name]) => name);
    for (const line of statements) {
      assert.match(line, statement);
      assert.doesNotMatch(line, /[;#]/); // they end a statement, or begin the code of a character
      const names = /^ {4}(?:Note [a-z ]+ )?(\w+)(?:(?:->>|-x|,)(\w+))?:/.exec(line)?.slice(1) ?? [];
      for (const name of names) assert.ok(name === undefined || participants.includes(name), line);
    }
  }
});

test('the links of the README lead somewhere', () => {
  const anchors = [...README.matchAll(/^#+ (.*)$/gm)]
    .map(([, title = '']) => `#${title.toLowerCase().replace(/[^\w -]/g, '').replaceAll(' ', '-')}`);
  const links = [...README.matchAll(/\]\(([^)]*)\)/g)].map(([, link = '']) => link);
  assert.ok(links.length > 0);
  for (const link of links) assert.ok(anchors.includes(link) || existsSync(link), link);
});

test('the npm scripts that the README names are there', () => {
  const { scripts } = require('../package.json');
  const named = [...README.matchAll(/`npm (?:run (\w+)|(test))/g)].map(([, name, test]) => name ?? test ?? '');
  assert.ok(named.length > 0);
  for (const name of named) assert.ok(name in scripts, name);
});
