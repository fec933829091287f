/** README.md is true: its examples print what it says, its tables and its diagram agree with the scripts. */
import assert from 'node:assert/strict';
import { copyFileSync, existsSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { constants } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { describe, test, type TestContext } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import { noLoopback } from './network';
import {
  cannotRun, compile, LIMIT, noNc, node, notLinux, PATIENCE, replaceOnce, run, type Running, scratch, start, unshare,
} from './scripts';

const README = readFileSync('README.md', 'utf8');
const SCRIPTS = ['portscanner.ts', 'server.ts', 'client.ts'];

/** The blocks of code, in order: the language and the text of each. */
const BLOCKS = [...README.matchAll(/^```(\w*)\n([^]*?)\n```$/gm)]
  .map(([, language = '', text = '']) => ({ language, text }));
const blocks = (language: string) => BLOCKS.flatMap((block) => (block.language === language ? [block.text] : []));

/** The rows of the table whose header has the cell, each row a list of cells. */
function table(title: string): string[][] {
  const cells = (line: string) => line.split(/(?<!`)\|/).slice(1, -1).map((cell) => cell.trim());
  const tables = (README.match(/^(\|.*\|\n)+/gm) ?? []).map((text) => text.trimEnd().split('\n').map(cells));
  const [, , ...rows] = tables.find(([header]) => header?.includes(title)) ?? [];
  assert.ok(rows.length > 0, title);
  return rows;
}

/** The pieces of code in a cell. */
const codes = (cell = '') => [...cell.matchAll(/`([^`]+)`/g)].map(([, code = '']) => code);

/** The system calls of a script, in order, as the table of its script lists them. */
const listedCalls = (script: string) => table(script).flatMap(([, calls]) => codes(calls));

// The examples: each block of console is one, run as it is printed.

/** What is typed into one terminal and what it prints: one command after the other. */
type Terminal = { command: string; output: string }[];

/** An example: the terminals, separated by blank lines, and the change of a script that precedes them. */
const EXAMPLES = BLOCKS.flatMap(({ language, text }, index) => {
  if (language !== 'console') return [];
  const parse = (typed: string) => {
    const [, command = '', output = ''] = /^(.*)\n?([^]*)$/.exec(typed) ?? [];
    return { command: command.replaceAll(/\bsudo /g, ''), output: output.replace(/\n?$/, output && '\n') };
  };
  const terminals = text.split(/\n\n(?=\$ )/).map((terminal): Terminal => terminal.split(/^\$ /m).slice(1).map(parse));
  const before = BLOCKS[index - 1];
  return [{ terminals, change: before?.language === 'diff' ? before.text : undefined }];
});

/** A pattern for what a terminal prints. Each number that the system chooses is the same wherever it occurs. */
function pattern(output: string): RegExp {
  const seen = new Set<string>();
  const escaped = output.replace(/\^C/g, '').replace(/[\\^$.*+?()[\]{}|]/g, '\\$&');
  return new RegExp(`^${escaped.replace(/\b(58666|4711|1[89](?= |\n|,|$))/g, (number) => { // port, process, descriptors
    if (seen.has(number)) return `\\k<n${number}>`;
    seen.add(number);
    return `(?<n${number}>\\d+)`;
  })}$`);
}

/** Why a program that the command runs can't be run here, in words; false if each one can. */
function cannotTry(command: string): string | false {
  if (command.startsWith('strace')) return cannotRun('strace', '-f', 'true');
  if (command.startsWith('tcpdump')) return cannotRun(...unshare('--net'), 'tcpdump', '-D');
  if (command.includes('| nc ')) return noNc();
  return command.startsWith('bash') && cannotRun('bash', '-c', 'true');
}

/** A network namespace in which 54321 is free: the command line that enters it, its ports, and its end. */
async function ownNetwork(t: TestContext) {
  const holder = start(t, [...unshare('--net'), 'sh', '-c', 'ip link set lo up && echo $$ && exec sleep 300']);
  const [pid] = await holder.printed(/^\d+(?=\n)/);
  const user = process.getuid?.() === 0 ? [] : [`--user=/proc/${pid}/ns/user`, '--preserve-credentials'];
  const listening = () => / [\dA-F]{8}:D431 0{8}:0000 0A /.test(readFileSync(`/proc/${pid}/net/tcp`, 'utf8')); // 54321
  const leave = () => {
    holder.process.kill();
    return holder.ended;
  };
  return { enter: ['nsenter', ...user, `--net=/proc/${pid}/ns/net`, '--'], listening, leave };
}

/** Why there can be no such network here, in words; false if there can. */
const noOwnNetwork = noLoopback() || cannotRun('nsenter', '--net=/proc/self/ns/net', 'true');

/** A copy of the project in a folder of its own, to which a diff without context is applied. */
function changedCopy(t: TestContext, diff: string): string {
  const folder = scratch(t);
  for (const file of [...SCRIPTS, 'package.json', 'tsconfig.json', '.npmrc']) copyFileSync(file, join(folder, file));
  symlinkSync(resolve('node_modules'), join(folder, 'node_modules'));
  const side = (sign: string) =>
    diff.split('\n').filter((line) => line.startsWith(sign)).map((line) => line.slice(1)).join('\n').replace(/;$/, '');
  const [script, ...more] = SCRIPTS.filter((name) => readFileSync(name, 'utf8').includes(side('-')));
  assert.ok(script && more.length === 0, `the diff does not fit one script:\n${diff}`);
  const file = join(folder, script);
  writeFileSync(file, replaceOnce(readFileSync(file, 'utf8'), side('-'), side('+')));
  return folder;
}

/** The command, with a compiled script where npx would start it, which takes a quarter of the time. */
const compiled = (command: string, folder: string) =>
  command.replace(/(?<=^|do )npx ts-node (\w+)\.ts/, (_, name: string) => {
    if (folder === '.') return node(`${name}.ts`).map((word) => `'${word}'`).join(' ');
    compile(join(folder, `${name}.ts`), join(folder, `${name}.js`));
    return `'${process.execPath}' ${name}.js`;
  });

/** Starts the commands of a terminal. It prints \0 after each, so that one can tell what each printed. */
function open(t: TestContext, terminal: Terminal, enter: string[], folder: string): Running {
  const typed = terminal.map(({ command }) => `${compiled(command, folder)}\nprintf '\\0'\n`).join('');
  const stderr = terminal[0]?.command.startsWith('tcpdump') ? '' : 'exec 2>&1\n';
  // Our stdout is a socket, and Node asks for its type, which strace would show; on a terminal it doesn't.
  const shown = typed.startsWith('strace') ? `{ ${stderr}${typed}} | cat` : `${stderr}${typed}`;
  return start(t, [...enter, 'sh', '-c', `cd "$0"\n${shown}`, folder]);
}

/** Resolves when the next terminal may be used: a program that waits for others is ready, any other has ended. */
async function ready(terminal: Terminal, running: Running, listening: () => boolean): Promise<void> {
  const { command = '', output = '' } = terminal[0] ?? {};
  if (command.startsWith('tcpdump')) {
    await new Promise<void>((heard) => {
      running.process.stderr?.on('data', (text: string) => { if (text.includes('listening')) heard(); });
    });
  } else if (/server\.ts/.test(command)) {
    while (!listening()) await setTimeout(10);
  } else if (command.startsWith('sleep')) {
    while (listening()) await setTimeout(10); // until the server has accepted it
  } else {
    await running.ended;
  }
  if (output.endsWith('^Z\n')) {
    await running.printed(pattern(output.replace('^Z\n', '')));
    process.kill(-(running.process.pid ?? 0), 'SIGSTOP');
  }
}

/** Asserts that a terminal has printed what the page says. Presses Ctrl-C where the page does. */
async function hasPrinted(terminal: Terminal, running: Running): Promise<void> {
  const group = -(running.process.pid ?? 0);
  const [first = ''] = terminal.map(({ output }) => output);
  if (first.endsWith('^Z\n')) return void process.kill(group, 'SIGKILL');
  const [interrupted] = first.split('^C');
  if (interrupted !== first && interrupted !== undefined) {
    await running.printed(pattern(interrupted));
    process.kill(group, 'SIGINT');
  }
  const printed = (await running.ended).stdout.replace(/\0$/, '').split('\0');
  for (const [at, { output }] of terminal.entries()) {
    assert.match((printed[at] ?? '').replace(/\[pid +/g, '[pid '), pattern(output)); // strace pads short numbers
  }
}

describe("the README's examples", { concurrency: 3 }, () => {
  for (const { terminals, change } of EXAMPLES) {
    const commands = terminals.flat().map(({ command }) => command);
    const backlog = terminals[0]?.[0]?.output.endsWith('^Z\n') && notLinux('lets two clients wait in a backlog of 1');
    const skip = noOwnNetwork || backlog || commands.map(cannotTry).find((reason) => reason);
    test(`prints what it says: ${commands.join(' and ')}`, { ...PATIENCE, skip: skip || false }, async (t) => {
      const folder = change === undefined ? '.' : changedCopy(t, change);
      const { enter, listening, leave } = await ownNetwork(t);
      const opened: [Terminal, Running][] = [];
      for (const terminal of terminals) {
        const running = open(t, terminal, enter, folder);
        opened.push([terminal, running]);
        await ready(terminal, running, listening);
      }
      for (const [terminal, running] of opened) await hasPrinted(terminal, running);
      await leave();
    });
  }
});

test('every block of code is of a kind that is tested, but for one picture', () => {
  const kinds = BLOCKS.map(({ language }) => language).filter((language) => language !== 'console');
  assert.deepEqual(kinds, ['sh', 'sh', 'mermaid', 'python', 'diff', 'diff', 'text']);
});

test('the quick start is two commands: one runs an example, one runs the tests', () => {
  assert.deepEqual(blocks('sh'), [`npm ci && ${EXAMPLES[0]?.terminals[0]?.[0]?.command}`, 'npm ci && npm test']);
});

// The Python original: each half talks with ours, and both print what ours print.

/** The output on the page of the command at its first place. */
const documented = (command: string) =>
  EXAMPLES.flatMap(({ terminals }) => terminals.flat()).find((typed) => typed.command === command)?.output ?? '';
const [imports = '', ...PYTHON] = (blocks('python')[0] ?? '').split(/^# .*\.py\n/m);
const [pythonServer = [], pythonClient = []] = PYTHON.map((source) => ['python3', '-u', '-c', imports + source]);
const PAIRS: [title: string, server: string[], client: string[]][] = [
  ['The Python original serves client.ts', pythonServer, node('client.ts')],
  ['server.ts serves the Python original', node('server.ts'), pythonClient],
  ['The Python original serves itself', pythonServer, pythonClient],
];
for (const [title, server, client] of PAIRS) {
  const skip = noOwnNetwork || cannotRun('python3', '--version');
  test(`${title} as the README says`, { ...LIMIT, skip }, async (t) => {
    const { enter, leave } = await ownNetwork(t);
    const serving = start(t, [...enter, ...server]);
    await serving.printed(/\n/);
    assert.deepEqual(await run(t, [...enter, ...client]), {
      status: 0, stderr: '', stdout: documented('npx ts-node client.ts'),
    });
    const { status, stdout } = await serving.ended;
    assert.match(stdout, pattern(documented('npx ts-node server.ts')));
    assert.equal(status, 0);
    await leave();
  });
}

// The tables and the diagram.

/** The calls of an strace log, one a line, that take or return an IPv4 socket, or report that it is ready. */
function socketCalls(log: string): string[] {
  const sockets = new Set<string>();
  return log.split('\n').flatMap((line) => {
    const [, call = '', args = '', result = ''] = /^(\w+)\((.*)\) += (.*)$/.exec(line) ?? [];
    const created = (call === 'socket' && args.startsWith('AF_INET,')) || call === 'accept4';
    if (created) sockets.add(result);
    const which = call === 'epoll_pwait' ? /EPOLLOUT[^{]*\{u32=\d+, u64=(\d+)/ : /^(\d+)/;
    const [, socket = ''] = which.exec(args) ?? [];
    const known = created || sockets.has(socket);
    if (call === 'close') sockets.delete(socket); // from now on, the number may mean another file
    return known ? [call] : [];
  });
}

const CALLS = 'socket,bind,listen,accept4,connect,getsockopt,read,write,shutdown,close,epoll_pwait';
for (const script of ['server.ts', 'client.ts']) {
  test(`the lines of ${script} that the README quotes are in it`, () => {
    for (const line of table(script).flatMap(([, , cell]) => codes(cell))) {
      assert.ok(readFileSync(script, 'utf8').includes(line), line);
    }
  });

  const skip = noOwnNetwork || cannotRun('strace', '-f', 'true');
  test(`the system calls of ${script} are those of the README, in order`, { ...LIMIT, skip }, async (t) => {
    const log = join(scratch(t), 'log'); // one file for each thread
    const traced = ['strace', '-ff', '-qq', '-e', 'signal=none', '-e', `trace=${CALLS}`, '-o', log];
    const { enter, leave } = await ownNetwork(t);
    const server = start(t, [...enter, ...(script === 'server.ts' ? traced : []), ...node('server.ts')]);
    await server.printed(/\n/);
    await run(t, [...enter, ...(script === 'client.ts' ? traced : []), ...node('client.ts')]);
    await server.ended;
    await leave();
    const logs = readdirSync(dirname(log)).map((file) => readFileSync(join(dirname(log), file), 'utf8'));
    assert.deepEqual(logs.map(socketCalls).find((calls) => calls.length > 2), listedCalls(script));
  });
}

/** The lines of the diagram: the two sides, and the text. */
const DIAGRAM = [...(blocks('mermaid')[0] ?? '').matchAll(/(?:(\w)->>(\w)|Note \w+ of (\w)): (.*)/g)]
  .map(([, from = '', to = '', note = '', text = '']) => ({ from: from || note, to: to || note, text }));

test("the diagram's packets are those that tcpdump shows of the conversation", () => {
  const flags: Record<string, string> = { SYN: 'S', 'SYN-ACK': 'S.', data: 'P.', FIN: 'F.' };
  const drawn = DIAGRAM.filter(({ from, to, text }) => from !== to && !text.startsWith('ACK'))
    .map(({ from, text }) => `${from} ${flags[text.split(',')[0] ?? '']}`);
  const output = EXAMPLES.flatMap(({ terminals }) => terminals.flat())
    .find(({ command }) => command.startsWith('tcpdump'))?.output ?? '';
  const shown = [...output.matchAll(/IP 127\.0\.0\.1\.(\d+) .*\[(.*)\]/g)]
    .map(([, port, shownFlags]) => `${port === '54321' ? 'S' : 'C'} ${shownFlags}`);
  assert.deepEqual(drawn, shown);
});

test("the diagram's calls are those of the tables, in the same order", () => {
  const drawn = (side: string) => DIAGRAM.filter(({ from, to }) => from === side && to === side)
    .flatMap(({ text }) => [...text.matchAll(/(\w+)\(\)/g)].map(([, call]) => (call === 'accept' ? 'accept4' : call)));
  assert.deepEqual(drawn('C'), listedCalls('client.ts'));
  assert.deepEqual(drawn('S'), listedCalls('server.ts'));
});

test('the codes that the README explains are codes that Node knows', () => {
  const listed = table('code').flatMap(([cell]) => codes(cell));
  for (const code of listed) assert.ok(code in constants.errno || ['ENOTFOUND', 'EAI_AGAIN'].includes(code), code);
});

for (const page of ['README.md', 'test/README.md']) {
  test(`the links of ${page} lead somewhere`, () => {
    const text = readFileSync(page, 'utf8');
    const anchors = [...text.matchAll(/^#+ (.*)$/gm)]
      .map(([, title = '']) => `#${title.toLowerCase().replace(/[^\w -]/g, '').replaceAll(' ', '-')}`);
    const links = [...text.matchAll(/\]\((?!https:)([^)]*)\)/g)].map(([, link = '']) => link);
    assert.ok(links.length > 0);
    for (const link of links) assert.ok(anchors.includes(link) || existsSync(join(dirname(page), link)), link);
  });
}
