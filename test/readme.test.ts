/** README.md is true: its examples print what it says, its tables and its diagram agree with the scripts. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import type { Readable } from 'node:stream';
import { describe, test, type TestContext } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import {
  cannotRun, edited, launch, LIMIT, node, noStrace, notLinux, run, type Running, scratch, signal, start,
  unshare,
} from './scripts';

const README = readFileSync('README.md', 'utf8');

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

/** The rows of the table that are about a script. The client's begin with its socket(), after the server's. */
function rowsOf(script: string): string[][] {
  const rows = table('server.ts, client.ts');
  const client = rows.findIndex(([python]) => python?.includes('s.connect('));
  return script === 'client.ts' ? rows.slice(client) : rows.slice(0, client);
}

/** The system calls of a script, in order, as the table lists them. */
const listedCalls = (script: string) => rowsOf(script).flatMap(([, calls]) => codes(calls));

const isTcpdump = ([terminal]: Terminal[]) => terminal?.[0]?.command.startsWith('tcpdump');

/** What is typed into one terminal and what it prints: one command after the other. */
type Terminal = { command: string; output: string }[];

/** The examples: the terminals of each `console` block. tcpdump watches the terminals of the block before its own. */
const EXAMPLES = BLOCKS.flatMap(({ language, text }) => {
  if (language !== 'console') return [];
  const parse = (typed: string) => {
    const [, command = '', output = ''] = /^(.*)\n?([^]*)$/.exec(typed) ?? [];
    return { command: command.replaceAll(/\bsudo /g, ''), output: output.replace(/\n?$/, output && '\n') };
  };
  return [text.split(/\n\n(?=\$ )/).map((terminal): Terminal => terminal.split(/^\$ /m).slice(1).map(parse))];
}).map((terminals, at, all) => (isTcpdump(terminals) ? [...terminals, ...(all[at - 1] ?? [])] : terminals));

/** A pattern for what a terminal prints. Each number that the system chooses is the same wherever it occurs. */
function pattern(output: string): RegExp {
  const seen = new Set<string>();
  const escaped = output.replace(/\^Z\n/g, '').replace(/[\\^$.*+?()[\]{}|]/g, '\\$&')
    .replace(/^(\\\.){3}\n/, 'Server started .*\\n(Incoming .*\\n)'); // the server's first two lines
  return new RegExp(`^${escaped.replace(/\b(58666|4711|18(?= |\n|,|$))/g, (number) => { // port, process, descriptor
    if (seen.has(number)) return `\\k<n${number}>`;
    seen.add(number);
    return `(?<n${number}>\\d+)`;
  })}$`);
}

/** Why a program that the command runs can't be run here, in words; false if each one can. */
function cannotTry(command: string): string | false {
  const [program] = /^(tcpdump|ss|bash)/.exec(command) ?? [];
  if (program !== undefined) return cannotRun(program, '--version');
  if (command.includes('| nc ')) return cannotRun('sh', '-c', 'nc -h 2>&1 | grep -q OpenBSD') && "nc is not OpenBSD's";
  return command.startsWith('strace') && noStrace();
}

// In /proc/net/tcp: a socket that is listening on port 54321, and a connection to it with six bytes (and a FIN) unread.
const LISTENING = / [\dA-F]{8}:D431 0{8}:0000 0A /;
const ARRIVED = /:D431 [\dA-F]{8}:[\dA-F]{4} 0\d 0{8}:0000000[67] /;

/** A network namespace in which 54321 is free, until the test ends: how to enter it, and how to list its sockets. */
async function ownNetwork(t: TestContext) {
  const holding = 'ip link set lo up && echo $$ && exec sleep 300';
  const holder = launch([...unshare('--net'), 'sh', '-c', holding], ['ignore', 'pipe', 'inherit']);
  t.after(() => signal(holder, 'SIGKILL'));
  const pid = String(await once(holder.stdout as Readable, 'data')).trim();
  const sockets = () => readFileSync(`/proc/${pid}/net/tcp`, 'utf8');
  return { enter: ['nsenter', `--net=/proc/${pid}/ns/net`, '--'], sockets };
}

/** Why there can be no such network here, in words; false if there can. */
const noOwnNetwork = cannotRun(...unshare('--net'), 'ip', 'link', 'set', 'lo', 'up')
  || cannotRun('nsenter', '--net=/proc/self/ns/net', 'true');

/** The command, with a compiled script where npx would start it, which takes a quarter of the time. */
const compiled = (command: string) => command.replace(/(?<=^|\w )npx ts-node (\w+\.ts)/, (_, script: string) =>
  node(script).map((word) => `'${word}'`).join(' '));

/** Starts the commands of a terminal. It prints \0 after each, so that one can tell what each printed. */
function open(t: TestContext, terminal: Terminal, enter: string[]): Running {
  const commands = terminal.map(({ command }) => compiled(command)).filter((command) => command !== 'fg');
  const typed = commands.map((command) => `${command}\nprintf '\\0'\n`).join('');
  const stderr = isTcpdump([terminal]) ? '' : 'exec 2>&1\n';
  // Our stdout is a socket, and Node asks for its type, which strace would show; on a terminal it doesn't.
  const shown = typed.startsWith('strace') ? `{ ${stderr}${typed}} | cat` : `${stderr}${typed}`;
  return start(t, [...enter, 'sh', '-c', shown]);
}

/** Resolves when the next terminal may be used: a program that waits for others is ready, any other has ended. */
async function ready(terminal: Terminal, running: Running, sockets: () => string): Promise<void> {
  const { command = '', output = '' } = terminal[0] ?? {};
  if (isTcpdump([terminal])) {
    await once(running.process.stderr as Readable, 'data'); // it says that it is listening
  } else if (/server\.ts/.test(command)) {
    while (!LISTENING.test(sockets())) await setTimeout(10);
  } else if (/^(sleep|\()/.test(command)) { // until the server has accepted it, or its bytes have arrived
    while (LISTENING.test(sockets()) && !ARRIVED.test(sockets())) await setTimeout(10);
  } else {
    await running.ended;
  }
  if (!output.endsWith('^Z\n')) return;
  await running.printed(pattern(output));
  signal(running.process, 'SIGSTOP');
}

/** Asserts that a terminal has printed what the page says. Types fg where the page does. */
async function hasPrinted(terminal: Terminal, running: Running): Promise<void> {
  const resumed = terminal[1]?.command === 'fg';
  const outputs = terminal.map(({ output }) => output);
  if (resumed) signal(running.process, 'SIGCONT');
  else if (outputs[0]?.endsWith('^Z\n')) return signal(running.process, 'SIGKILL');
  const printed = (await running.ended).stdout.replace(/\0$/, '').split('\0');
  for (const [at, output] of (resumed ? [outputs.join('')] : outputs).entries()) {
    const shown = (printed[at] ?? '').replace(/\[pid +/g, '[pid ').replace(/(?<=.)\n?$/, '\n'); // strace pads numbers
    assert.match(shown, pattern(output));
  }
}

describe("the README's examples", { concurrency: 3 }, () => {
  for (const terminals of EXAMPLES) {
    const commands = terminals.flat().map(({ command }) => command);
    const backlog = commands.some((command) => command.includes('1 2 3')) && notLinux('lets two clients wait');
    const skip = noOwnNetwork || backlog || commands.map(cannotTry).find((reason) => reason);
    test(`prints what it says: ${commands.join(' and ')}`, { ...LIMIT, skip: skip || false }, async (t) => {
      const { enter, sockets } = await ownNetwork(t);
      const opened: [Terminal, Running][] = [];
      for (const terminal of terminals) {
        const running = open(t, terminal, enter);
        opened.push([terminal, running]);
        await ready(terminal, running, sockets);
      }
      for (const [terminal, running] of opened) await hasPrinted(terminal, running);
    });
  }
});

test('the change on the page keeps the server going until Ctrl-C', { ...LIMIT, skip: noOwnNetwork }, async (t) => {
  const [before = '', after = ''] = (blocks('diff')[0] ?? '').split('\n').map((line) => line.slice(3, -1)); // no ;
  const { enter } = await ownNetwork(t);
  const server = start(t, [...enter, ...edited('server.ts', before, after)]);
  for (const message of ['one', 'two']) {
    await server.printed(message === 'one' ? /started/ : /Bye![^]*started/);
    await run(t, [...enter, ...node('client.ts', 'localhost', '54321', message)]);
  }
  await server.printed(/two[^]*started/);
  server.process.kill('SIGINT');
  assert.deepEqual((await server.ended).stdout.match(/one|two|Bye!/g), ['one', 'Bye!', 'two', 'Bye!', 'Bye!']);
});

test('every block of code is of a kind that is tested or a diagram, and two commands are enough to begin', () => {
  const kinds = BLOCKS.map(({ language }) => language).filter((language) => language !== 'console');
  assert.deepEqual(kinds, ['sh', 'text', 'text', 'python', 'text', 'diff', 'sh']);
  assert.deepEqual(blocks('sh'), [`npm ci && ${EXAMPLES[0]?.[0]?.[0]?.command}`, 'npm ci && npm test']);
});

// The Python original: each half talks with ours, and both print what ours print.

/** The output that the page shows for the command. */
const documented = (command: string) =>
  EXAMPLES.flat(2).find((typed) => typed.command === command && typed.output.includes('Hello'))?.output ?? '';
const [imports = '', ...PYTHON] = (blocks('python')[0] ?? '').split(/^# .*\.py\n/m);
const [pythonServer = [], pythonClient = []] = PYTHON.map((source) => ['python3', '-u', '-c', imports + source]);
for (const [title, server, client] of [
  ['The Python original serves client.ts', pythonServer, node('client.ts')],
  ['server.ts serves the Python original', node('server.ts'), pythonClient],
] as const) {
  const skip = noOwnNetwork || cannotRun('python3', '--version');
  test(`${title} as the README says`, { ...LIMIT, skip }, async (t) => {
    const { enter } = await ownNetwork(t);
    const serving = start(t, [...enter, ...server]);
    await serving.printed(/\n/);
    assert.deepEqual(await run(t, [...enter, ...client]), {
      status: 0, stderr: '', stdout: documented('npx ts-node client.ts'),
    });
    const { status, stdout } = await serving.ended;
    assert.match(stdout, pattern(documented('npx ts-node server.ts')));
    assert.equal(status, 0);
  });
}

/** The calls of an strace log, one a line, that take or return a TCP socket, or report that it is ready to write. */
const socketCalls = (log: string) => log.split('\n').filter((line) => /<TCP:|EPOLLOUT[^{]*\{u32/.test(line))
  .map((line) => line.replace(/\(.*/, ''));

const CALLS = 'socket,bind,listen,accept4,connect,getsockopt,read,write,shutdown,close,epoll_pwait';
for (const script of ['server.ts', 'client.ts']) {
  test(`the lines of ${script} that the README quotes are in it`, () => {
    for (const line of rowsOf(script).flatMap(([, , cell]) => codes(cell))) {
      assert.ok(readFileSync(script, 'utf8').includes(line), line);
    }
  });

  test(`the README lists the system calls of ${script}`, { ...LIMIT, skip: noOwnNetwork || noStrace() }, async (t) => {
    const log = join(scratch(t), 'log'); // one file for each thread
    const traced = ['strace', '-ff', '-yy', '-qq', '-e', 'signal=none', '-e', `trace=${CALLS}`, '-o', log];
    const { enter } = await ownNetwork(t);
    const server = start(t, [...enter, ...(script === 'server.ts' ? traced : []), ...node('server.ts')]);
    await server.printed(/\n/);
    await run(t, [...enter, ...(script === 'client.ts' ? traced : []), ...node('client.ts')]);
    await server.ended;
    const logs = readdirSync(dirname(log)).map((file) => readFileSync(join(dirname(log), file), 'utf8'));
    assert.deepEqual(logs.map(socketCalls).find((calls) => calls.length > 2), listedCalls(script));
  });
}

/** The lines of the diagram: the client's calls, the packet and its direction, and the server's calls. */
const DIAGRAM = (blocks('text').find((text) => text.includes('packets  ')) ?? '').split('\n').slice(1)
  .map((line) => /^(.*?)(?:(---|<--) (\S+) -+>? *)?((?:\w+\(\)(?:, )?)*)$/.exec(line) ?? []);

test("the diagram's packets are those that tcpdump shows of the conversation", () => {
  const flags: Record<string, string> = { SYN: 'S', 'SYN-ACK': 'S.', data: 'P.', FIN: 'F.' };
  const drawn = DIAGRAM.filter(([, , , packet = 'ACK']) => packet !== 'ACK')
    .map(([, , arrow, packet = '']) => `${arrow === '---' ? 'C' : 'S'} ${flags[packet]}`);
  const output = EXAMPLES.find(isTcpdump)?.[0]?.[0]?.output ?? '';
  const shown = [...output.matchAll(/IP 127\.0\.0\.1\.(\d+) .*\[(.*)\]/g)]
    .map(([, port, shownFlags]) => `${port === '54321' ? 'S' : 'C'} ${shownFlags}`);
  assert.deepEqual(drawn, shown);
});

test("the diagram's calls are those of the tables, in the same order", () => {
  const drawn = (column: number) => DIAGRAM.flatMap((line) => [...(line[column] ?? '').matchAll(/(\w+)\(\)/g)])
    .map(([, call]) => call);
  assert.deepEqual(drawn(1), listedCalls('client.ts'));
  assert.deepEqual(drawn(4), listedCalls('server.ts'));
});

test('no local link of the README is broken', () => {
  const anchors = [...README.matchAll(/^#+ (.*)$/gm)]
    .map(([, title = '']) => `#${title.toLowerCase().replace(/[^\w -]/g, '').replaceAll(' ', '-')}`);
  const links = [...README.matchAll(/\]\((?!https:)([^)]*)\)/g)].map(([, link = '']) => link);
  assert.ok(links.length > 0);
  for (const link of links) assert.ok(anchors.includes(link) || existsSync(link), link);
});
