/** README.md is true: its examples print what it says, its tables and its diagram agree with the scripts. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import type { Readable } from 'node:stream';
import { describe, test, type TestContext } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import {
  cannotRun, launch, LIMIT, node, noStrace, notLinux, run, type Running, scratch, signal, start,
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

/** What is done in a terminal: a command is typed, which prints the output, or a key such as ^Z is pressed. */
type Step = { terminal: string; command: string; key: string; output: string };

const isTcpdump = ({ command }: Step) => command.startsWith('tcpdump');

/** The examples: the steps of each `console` block. tcpdump alone in a block watches the steps of the block before. */
const EXAMPLES = blocks('console').map((text) => {
  const steps: Step[] = [];
  for (const line of text.split('\n')) {
    const [isStep, terminal = '', command = '', key = ''] = /^(\d?)(?:\$ (.*)|\^([CDZ]))$/.exec(line) ?? [];
    const last = steps.at(-1);
    if (isStep !== undefined) steps.push({ terminal, command: command.replaceAll(/\bsudo /g, ''), key, output: '' });
    else if (last) last.output += `${line}\n`;
  }
  return steps;
}).map((steps, at, all) => (steps.every(isTcpdump) ? [...steps, ...(all[at - 1] ?? [])] : steps));

/** A pattern for what a command prints. The system chooses the port of a client: the same wherever it occurs. */
function pattern(output: string): RegExp {
  const text = output.replace(/[\\^$.*+?()[\]{}|]/g, '\\$&')
    .replace(/^(\\\.){3}\n/, 'Server started .*\\n(Incoming .*\\n)') // the server's first two lines
    .replace('58666', '(?<port>\\d+)').replaceAll('58666', '\\k<port>')
    .replace(/\b\d{7}\b/g, '\\d{6,}').replace(/\b\d{6}\b/g, '\\d+') // in buffers: it varies, and the second is much
    .replace('write ECONNRESET', '(write|read) ECONNRESET'); // whichever comes first
  return new RegExp(`^${text}$`);
}

/** Why a program that the command runs can't be run here, in words; false if each one can. */
function cannotTry(command: string): string | false {
  const [program] = /^(tcpdump|ss|bash)/.exec(command) ?? [];
  if (program !== undefined) return cannotRun(program, '--version');
  if (/\bnc /.test(command)) return cannotRun('sh', '-c', 'nc -h 2>&1 | grep -q OpenBSD') && "nc is not OpenBSD's";
  return command.startsWith('iptables') && cannotRun(...unshare('--net'), 'iptables', '--list');
}

// In /proc/net/tcp: a socket that is listening on port 54321, and a connection to it with six bytes (and a FIN) unread.
const LISTENING = / [\dA-F]{8}:D431 0{8}:0000 0A /;
const ARRIVED = /:D431 [\dA-F]{8}:[\dA-F]{4} 0\d 0{8}:0000000[67] /;

/** Resolves when both ends of a connection have more than a megabyte unsent, and no more comes. */
async function full(sockets: () => string): Promise<void> {
  const unsent = () => [...sockets().matchAll(/ 01 ([\dA-F]{8}):/g)].map(([, bytes]) => bytes).join();
  let before = '';
  while (!/^00[1-9A-F].*,00[1-9A-F]/.test(before) || before !== unsent()) {
    before = unsent();
    await setTimeout(500);
  }
}

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
const compiled = (command: string) => command.replace('npm ci && ', '')
  .replace(/npx ts-node (\w+\.ts)/, (_, script: string) => node(script).map((word) => `'${word}'`).join(' '));

/** Types a command. Resolves when the next step may be done: the command has ended, or waits for another step. */
async function type(t: TestContext, step: Step, isHeld: boolean, network: { enter: string[]; sockets: () => string }) {
  const { command } = step;
  const inOrder = isTcpdump(step) ? '' : 'exec 2>&1; '; // stdout and stderr in one, as on a terminal
  const running = start(t, [...network.enter, 'bash', '-c', inOrder + compiled(command)], {}, 'pipe');
  const until = async (isReady: () => boolean) => {
    while (!isReady() && running.process.exitCode === null) await setTimeout(10);
  };
  if (isTcpdump(step)) await once(running.process.stderr as Readable, 'data'); // it says that it is listening
  else if (command.includes('server.ts')) await until(() => LISTENING.test(network.sockets()));
  else if (command.includes('yes')) await full(network.sockets);
  else if (isHeld) await until(() => !LISTENING.test(network.sockets())); // the server has accepted it
  else await until(() => ARRIVED.test(network.sockets()));
  return running;
}

/** Presses a key in the terminal of a running command. */
async function press(key: string, running: Running, output: string): Promise<void> {
  if (key === 'C') signal(running.process, 'SIGINT');
  if (key === 'D') running.process.stdin?.end();
  if (key !== 'Z') return void await running.ended;
  await running.printed(pattern(output));
  signal(running.process, 'SIGSTOP');
}

describe("the README's examples", { concurrency: 3 }, () => {
  for (const steps of EXAMPLES) {
    const commands = steps.map(({ command }) => command).filter((command) => command !== '');
    const backlog = commands.some((command) => command.includes('1 2 3')) && notLinux('lets two clients wait');
    const skip = noOwnNetwork || backlog || commands.map(cannotTry).find((reason) => reason);
    test(`prints what it says: ${commands.join(' and ')}`, { ...LIMIT, skip: skip || false }, async (t) => {
      const network = await ownNetwork(t);
      const open = new Map<string, { running: Running; output: string }>(); // the last command of each terminal
      const hasPrinted = async ({ running, output }: { running: Running; output: string }) =>
        assert.match((await running.ended).stdout.replace(/(?<=.)\n?$/, '\n'), pattern(output));
      for (const [at, step] of steps.entries()) {
        const { terminal, command, key, output } = step;
        const typed = open.get(terminal);
        if (key !== '' && typed) {
          await press(key, typed.running, typed.output);
        } else if (command === 'fg' && typed) {
          typed.output += output;
          signal(typed.running.process, 'SIGCONT');
        } else {
          if (typed) await hasPrinted(typed);
          const isHeld = steps.slice(at).some((later) => later.terminal === terminal && later.key !== '');
          open.set(terminal, { running: await type(t, step, isHeld, network), output });
        }
      }
      for (const typed of open.values()) await hasPrinted(typed);
    });
  }
});

test('every block of code is of a kind that is tested or a diagram, and two commands are enough', () => {
  const kinds = BLOCKS.map(({ language }) => language).filter((language) => language !== 'console');
  assert.deepEqual(kinds, ['text', 'text', 'python', 'text', 'sh']);
  assert.match(EXAMPLES[0]?.[0]?.command ?? '', /^npm ci && npx ts-node portscanner\.ts/);
  assert.deepEqual(blocks('sh'), ['npm ci && npm test']);
});

// The Python original: each half talks with ours, and both print what ours print.

/** The output that the page shows for the command. */
const documented = (command: string) =>
  EXAMPLES.flat().find((typed) => typed.command === command && typed.output.includes('Hello'))?.output ?? '';
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
  const output = EXAMPLES.flat().find(isTcpdump)?.output ?? '';
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
