/**
 * How fast the scripts are, and how right, beside other programs that take turns with them. Prints a table of medians.
 * README.md beside this file has a run of it. What to expect, and why:
 *
 * - Start: yargs takes half of the difference to an empty script, the compiler the other half.
 * - All ports of loopback: the floor is a bare loop of Node, so nc, a program in C, stays ahead.
 * - The networks: 1,000 ports are scanned, of which every 25th is open. No answer is wrong.
 * - The echo: Node decodes pieces of UTF-8, and looks for control characters.
 */
import type { ChildProcess } from 'node:child_process';
import { copyFileSync, mkdtempSync, openSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { ban, inNetwork, limit, listenAt, lossy, noNetwork, outage, rule, TARGET } from './network';
import { cannotRun, launch, npx, peakMemory, tsNode } from './scripts';

const MIB = 1 << 20;
const folder = mkdtempSync(join(tmpdir(), 'bench-'));
process.on('exit', () => rmSync(folder, { recursive: true }));
copyFileSync('tsconfig.json', join(folder, 'tsconfig.json'));
symlinkSync(resolve('node_modules'), join(folder, 'node_modules'));
const EMPTY = join(folder, 'empty.ts');
writeFileSync(EMPTY, '');

/** A script that does the least a scanner can do: it opens a socket for each port, connects it and closes it. */
const BARE_LOOP = join(folder, 'loop.ts');
writeFileSync(BARE_LOOP, `
import { Socket } from 'node:net';
async function scan() {
  for (let port = 1; port <= 65535; port++) {
    const socket = new Socket().on('connect', () => socket.destroy()).on('error', () => socket.destroy());
    socket.connect(port, '127.0.0.1');
    if (port % 64 === 0) await new Promise(setImmediate);
  }
}
scan();
`);

/** The Python original of README.md, on a port that the system chooses, with its stdout in a file. */
const [, PYTHON = ''] = /```python\n([^]*)# client\.py/.exec(readFileSync('README.md', 'utf8')) ?? [];
const PYTHON_SERVER = PYTHON.replace('54321))', '0))')
  .replace(/'(Server started.*)54321'/, "'$1' + str(s.getsockname()[1]), flush=True");

/** Runs a command line to its end, its output thrown away. Resolves to the seconds it took, and its peak memory. */
async function measure(commandLine: string[]): Promise<{ seconds: number; memory: number }> {
  const begin = performance.now();
  const child = launch(commandLine, 'ignore');
  let memory = 0;
  const look = setInterval(() => { memory = Math.max(memory, peakMemory(child)); }, 10);
  await ended(child);
  clearInterval(look);
  return { seconds: (performance.now() - begin) / 1000, memory };
}

const ended = (child: ChildProcess) => new Promise((resolve, reject) => child.on('error', reject).on('close', resolve));
const seconds = async (commandLine: string[]) => (await measure(commandLine)).seconds;

/** Starts an echo server with its stdout in a file, and resolves to the server and its port. */
async function startEcho(commandLine: string[], file: string): Promise<{ server: ChildProcess; port: number }> {
  const server = launch(commandLine, ['ignore', openSync(file, 'w'), 'inherit']);
  for (;;) {
    const [, port] = /port (\d+)\n/.exec(readFileSync(file, 'utf8')) ?? [];
    if (port !== undefined) return { server, port: Number(port) };
    await setTimeout(5);
  }
}

/** Sends that many bytes to an echo server and receives them again. Resolves when the server has closed. */
async function echo(port: number, bytes: number): Promise<void> {
  const socket = connect({ port, host: '127.0.0.1', allowHalfOpen: true });
  const piece = Buffer.alloc(MIB, 'Hello World! ');
  let echoed = 0;
  socket.on('data', (data) => { echoed += data.length; });
  for (let sent = 0; sent < bytes; sent += piece.length) {
    if (!socket.write(piece)) await new Promise((drained) => socket.once('drain', drained));
  }
  socket.end();
  await new Promise((closed, reject) => socket.on('error', reject).on('close', closed));
  if (echoed !== bytes) throw new Error(`${echoed} of ${bytes} bytes came back`);
}

/** The seconds that an echo server takes for 128 MiB. */
async function echoSeconds(commandLine: string[]): Promise<number> {
  const { server, port } = await startEcho(commandLine, join(folder, 'output'));
  const begin = performance.now();
  await echo(port, 128 * MIB);
  const taken = (performance.now() - begin) / 1000;
  if (server.exitCode === null) await ended(server);
  return taken;
}

const median = (numbers: number[]) => numbers.sort((a, b) => a - b)[numbers.length >> 1] ?? NaN;

/** Measures ours and the peer by turns, after a first turn that does not count. Resolves to the two medians. */
async function pairs(ours: () => Promise<number>, peer: () => Promise<number>, rounds = 5): Promise<[number, number]> {
  const results: [number[], number[]] = [[], []];
  for (let round = 0; round <= rounds; round++) {
    const pair = [await ours(), await peer()] as const;
    if (round > 0) pair.forEach((result, index) => results[index]?.push(result));
  }
  return [median(results[0]), median(results[1])];
}

/** Two times and what the first is of the second, in words. */
const ratio = ([ours, peer]: [number, number]) =>
  `${(ours / peer).toFixed(2)} (${ours.toFixed(2)} s / ${peer.toFixed(2)} s)`;
const notInstalled = (reason: string | false) => reason && 'not installed';

const ALL = tsNode('portscanner.ts', '-H', '127.0.0.1', '-p', '1-65535', '--open');

/** The ports of the network rows: each 25th is open, and those of a row with silent ports are 10, 60, 110 and so on. */
const PORTS = Array.from({ length: 1000 }, (_, index) => index + 1);
const OPEN = PORTS.filter((port) => port % 25 === 0);
const SILENT = PORTS.filter((port) => port % 50 === 10);

const NETWORKS: [what: string, setup: string, silent: number[]][] = [
  ['the host sends at most 250 RST a second', limit('OUTPUT', 'RST RST', 250), []],
  ['the host takes at most 250 SYN a second', limit('INPUT', 'SYN,ACK SYN', 250), []],
  ['5 % of the packets are lost each way', lossy(0.05), []],
  ['the host replies nothing for 3 s', outage(500, 3), []],
  ['a firewall bans a source for 3 s if it sends 300 SYN in a second', ban(300, 300), []],
  ['20 ports are silent', SILENT.map((port) => rule(`${port}`, 'DROP')).join(''), SILENT],
];

/** What a scanner printed for each port, and nmap's answer for the ports that it does not list, the commonest one. */
function answersIn(output: string): { answers: Map<number, string>; rest: string | undefined } {
  const answers = new Map<number, string>();
  for (const [, port, answer = ''] of output.matchAll(/^(?:\[\w+\] TCP port )?(\d+)(?:\/tcp| is) +(\w+)/gm)) {
    answers.set(Number(port), answer);
  }
  return { answers, rest: /^Not shown: \d+ (\w+)/m.exec(output)?.[1] };
}

/** Scans the network's ports. Resolves to the seconds that the scan itself took, and to how many answers were wrong. */
async function scanNetwork(setup: string, silent: number[], scanner: string[]): Promise<[number, number]> {
  const begin = join(folder, 'begin');
  const file = join(folder, 'answers');
  const scan = ['sh', '-c', 'date +%s.%N > "$0"; exec "$@"', begin, ...scanner];
  await ended(launch(inNetwork(listenAt(OPEN) + setup, scan), ['ignore', openSync(file, 'w'), 'ignore']));
  const taken = Date.now() / 1000 - Number(readFileSync(begin, 'utf8'));

  const { answers, rest } = answersIn(readFileSync(file, 'utf8'));
  const right = (port: number) => (OPEN.includes(port) ? 'open' : silent.includes(port) ? 'filtered' : 'closed');
  return [taken, PORTS.filter((port) => (answers.get(port) ?? rest) !== right(port)).length];
}

/** Ours and nmap alternately in a network: the medians of their seconds, and their wrong answers in all rounds. */
async function compareInNetwork(setup: string, silent: number[]): Promise<string> {
  const wrong: [number, number] = [0, 0];
  const scanWith = (index: 0 | 1, scanner: string[]) => async () => {
    const [seconds, mistakes] = await scanNetwork(setup, silent, scanner);
    wrong[index] += mistakes;
    return seconds;
  };
  const medians = await pairs(
    scanWith(0, tsNode('portscanner.ts', '-H', TARGET, '-p', '1-1000')),
    scanWith(1, ['nmap', '-sT', '-n', '-Pn', '-T4', '-p', '1-1000', TARGET]), 3,
  );
  return `${ratio(medians)}, ${wrong[0]} / ${wrong[1]} wrong`;
}

/** Ours and another command line alternately, in words. */
const times = (ours: string[], peer: string[]) => async () =>
  ratio(await pairs(() => seconds(ours), () => seconds(peer)));

/** The rows: `without` says why one can't be measured here; `run` resolves to the result, in words. */
const ROWS: [what: string, target: string, without: string | false, run: () => Promise<string>][] = [
  ['start: the documented scan / an empty script, both by `npx ts-node`', 'at most 1.4', false,
    times(npx('portscanner.ts', '-H', 'localhost', '-p', '54321'), npx(EMPTY))],
  ['scan of 65,535 ports of loopback / a bare loop of Node', 'at most 1.15', false, times(ALL, tsNode(BARE_LOOP))],
  ['the same / `nmap -sT -p- -n -Pn`', '', notInstalled(cannotRun('nmap', '--version')),
    times(ALL, ['nmap', '-sT', '-p-', '-n', '-Pn', '127.0.0.1'])],
  ['the same / `nc -z -n 127.0.0.1 1-65535`', '', notInstalled(cannotRun('sh', '-c', 'command -v nc')),
    times(ALL, ['nc', '-z', '-n', '127.0.0.1', '1-65535'])],
  ...NETWORKS.map(([what, setup, silent]): typeof ROWS[number] => [
    `1,000 ports, ${what} / \`nmap -sT -n -Pn -T4\``, '0 wrong',
    noNetwork() || notInstalled(cannotRun('nmap', '--version')), () => compareInNetwork(setup, silent),
  ]),
  ['echo of 128 MiB by server.ts, bytes per second / the Python original', 'at least 0.9',
    notInstalled(cannotRun('python3', '--version')), async () => {
      const [ours, peer] = await pairs(
        () => echoSeconds(tsNode('server.ts', '127.0.0.1', '0')), () => echoSeconds(['python3', '-c', PYTHON_SERVER]),
      );
      return `${(peer / ours).toFixed(2)} (${(128 / ours).toFixed(0)} MiB/s / ${(128 / peer).toFixed(0)} MiB/s)`;
    }],
  ['peak memory of the scan of 65,535 ports of loopback', 'at most 150 MB', false, async () =>
    `${((await measure(ALL)).memory / 1e6).toFixed(0)} MB`],
];

void bench();

/** Measures the rows, and prints each as it is known. */
async function bench(): Promise<void> {
  console.log('| what | target | result |\n| --- | --- | --- |');
  for (const [what, target, without, run] of ROWS) console.log(`| ${what} | ${target} | ${without || await run()} |`);
}
