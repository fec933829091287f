/**
 * Speed and accuracy of the scripts, measured alternately with other programs. Prints a table of medians, of which
 * README.md beside this file shows one run. What to expect, and why:
 *
 * - Start: yargs takes half of the extra time over an empty script, and the compiler the other half.
 * - All ports of loopback: the floor is a bare loop in Node, so nc, a program in C, stays ahead.
 * - The networks: of 1,000 ports, every 25th is open, unless the row says otherwise. No result is wrong.
 * - The echo: Node decodes chunks of UTF-8, and looks for control characters.
 */
import type { ChildProcess } from 'node:child_process';
import {
  copyFileSync, existsSync, mkdtempSync, openSync, readFileSync, rmSync, symlinkSync, writeFileSync,
} from 'node:fs';
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

/** Runs a command line, its output thrown away. Resolves to its seconds, its seconds of CPU, and its peak memory. */
async function measure(commandLine: string[]): Promise<{ seconds: number; cpu: number; memory: number }> {
  const begin = performance.now();
  const child = launch(commandLine, 'ignore');
  let memory = 0;
  let cpu = 0;
  const look = setInterval(() => {
    memory = Math.max(memory, peakMemory(child));
    cpu = Math.max(cpu, cpuSeconds(child));
  }, 10);
  await ended(child);
  clearInterval(look);
  return { seconds: (performance.now() - begin) / 1000, cpu, memory };
}

/** The seconds of CPU that a program has used so far, in hundredths; 0 when it has ended, and without /proc. */
function cpuSeconds({ pid }: ChildProcess): number {
  const file = `/proc/${pid}/stat`;
  const fields = (existsSync(file) ? readFileSync(file, 'utf8') : '').split(') ').at(-1)?.split(' ') ?? [];
  return (Number(fields[11] ?? 0) + Number(fields[12] ?? 0)) / 100; // utime and stime, see proc(5)
}

const ended = (child: ChildProcess) => new Promise((resolve, reject) => child.on('error', reject).on('close', resolve));

/** Starts an echo server with its stdout in a file, and resolves to the server and its port. */
async function startEcho(commandLine: string[], file: string): Promise<{ server: ChildProcess; port: number }> {
  const server = launch(commandLine, ['ignore', openSync(file, 'w'), 'inherit']);
  for (;;) {
    const [, port] = /port (\d+)\n/.exec(readFileSync(file, 'utf8')) ?? [];
    if (port !== undefined) return { server, port: Number(port) };
    await setTimeout(5);
  }
}

/** Sends that many bytes to an echo server and receives them back. Resolves when the server has closed. */
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

/** Measures ours and the peer alternately, after a first turn that does not count. Resolves to the two medians. */
async function pairs(ours: () => Promise<number>, peer: () => Promise<number>, rounds = 5): Promise<[number, number]> {
  const results: [number[], number[]] = [[], []];
  for (let round = 0; round <= rounds; round++) {
    const pair = [await ours(), await peer()] as const;
    if (round > 0) pair.forEach((result, index) => results[index]?.push(result));
  }
  return [median(results[0]), median(results[1])];
}

/** The ratio of two times, and the times, as text. */
const ratio = ([ours, peer]: [number, number]) =>
  `${(ours / peer).toFixed(2)} (${ours.toFixed(2)} s / ${peer.toFixed(2)} s)`;
const notInstalled = (reason: string | false) => reason && 'not installed';

const ALL = tsNode('portscanner.ts', '-H', '127.0.0.1', '-p', '1-65535', '--open');

/** A row about a network: its ports, those that are open, those that are silent, and how often it is measured. */
type Network = {
  what: string; setup: string; ports: number; open: number[]; silent: (port: number) => boolean; turns: number;
};

const every = (step: number, ports: number, first = step) =>
  Array.from({ length: ports }, (_, index) => index + 1).filter((port) => port % step === first % step);
const network = (what: string, setup: string, more: Partial<Network> = {}): Network =>
  ({ what, setup, ports: 1000, open: every(25, 1000), silent: () => false, turns: 3, ...more });

const accept = (ports: number[]) => ports.map((port) => rule(`${port}`, 'ACCEPT')).join('');
const FIVE = [25, 50, 1000, 1500, 2000];
const NETWORKS = [
  network('the host sends at most 250 RSTs a second', limit('OUTPUT', 'RST RST', 250)),
  network('the host takes at most 250 SYNs a second', limit('INPUT', 'SYN,ACK SYN', 250)),
  network('5% of the packets are lost each way', lossy(0.05)),
  network("the host doesn't reply for 3 s", outage(500, 3)),
  network('a firewall bans a source for 3 s if it sends 300 SYNs in a second', ban(300, 300)),
  network('20 ports are silent', every(50, 1000, 10).map((port) => rule(`${port}`, 'DROP')).join(''),
    { silent: (port) => port % 50 === 10 }),
  network('all but five ports are silent', accept(FIVE) + rule('1:2000', 'DROP'),
    { ports: 2000, open: FIVE, silent: (port) => !FIVE.includes(port), turns: 1 }),
  network('the host rejects all but five, one ICMP error a second', accept(every(20, 100)) + rule('1:100', 'REJECT'),
    { ports: 100, open: every(20, 100), turns: 0 }),
];

/** What a scanner printed for each port, and nmap's answer for the ports that it does not list, the commonest one. */
function answersIn(output: string): { answers: Map<number, string>; rest: string | undefined } {
  const answers = new Map<number, string>();
  for (const [, port, answer = ''] of output.matchAll(/^(?:\[\w+\] TCP port )?(\d+)(?:\/tcp| is) +(\w+)/gm)) {
    answers.set(Number(port), answer);
  }
  return { answers, rest: /^Not shown: \d+ (\w+)/m.exec(output)?.[1] };
}

/** Scans a network. Resolves to the seconds that the scan itself took, and to how many results were wrong. */
async function scanNetwork({ setup, ports, open, silent }: Network, scanner: string[]): Promise<[number, number]> {
  const begin = join(folder, 'begin');
  const file = join(folder, 'results');
  const scan = ['sh', '-c', 'date +%s.%N > "$0"; exec "$@"', begin, ...scanner];
  await ended(launch(inNetwork(listenAt(open) + setup, scan), ['ignore', openSync(file, 'w'), 'ignore']));
  const taken = Date.now() / 1000 - Number(readFileSync(begin, 'utf8'));

  const { answers, rest } = answersIn(readFileSync(file, 'utf8'));
  const right = (port: number) => (open.includes(port) ? 'open' : silent(port) ? 'filtered' : 'closed');
  return [taken, every(1, ports).filter((port) => (answers.get(port) ?? rest) !== right(port)).length];
}

const NMAP = ['nmap', '-sT', '-n', '-Pn', '-T4', '-p'];

/** Ours and nmap alternately in a network: the medians of their seconds, and their wrong results in all turns. */
async function compareInNetwork(where: Network): Promise<string> {
  const wrong: [number, number] = [0, 0];
  const scanWith = (index: 0 | 1, scanner: string[]) => async () => {
    const [seconds, mistakes] = await scanNetwork(where, scanner);
    wrong[index] += mistakes;
    return seconds;
  };
  const ports = `1-${where.ports}`;
  const ours = scanWith(0, tsNode('portscanner.ts', '-H', TARGET, '-p', ports));
  const peer = scanWith(1, [...NMAP, ports, TARGET]);
  const once = async (): Promise<[number, number]> => [await ours(), await peer()];
  const medians = where.turns === 0 ? await once() : await pairs(ours, peer, where.turns);
  return `${ratio(medians)}, ${wrong[0]} / ${wrong[1]} wrong`;
}

/** The seconds until a scan of 1,000 ports, all silent but the last, prints that this one is open. */
async function untilOpen(scanner: string[]): Promise<number> {
  const setup = listenAt([1000]) + rule('1000', 'ACCEPT') + rule('1:999', 'DROP');
  const marked = ['sh', '-c', 'echo; exec "$@"', 'sh', ...scanner]; // the line marks the beginning
  const child = launch(inNetwork(setup, marked), ['ignore', 'pipe', 'ignore']);
  let begin = 0;
  return new Promise((resolve) => child.stdout?.on('data', (text: Buffer) => {
    begin ||= performance.now();
    if (!/1000(\/tcp)? .*open/.test(`${text}`)) return;
    resolve((performance.now() - begin) / 1000);
    process.kill(-(child.pid ?? NaN), 'SIGKILL');
  }));
}

/** Ours and another command line alternately, as text. */
const times = (ours: string[], peer: string[], what: 'seconds' | 'cpu' = 'seconds') => async () =>
  ratio(await pairs(async () => (await measure(ours))[what], async () => (await measure(peer))[what]));

/** The rows: `without` says why one can't be measured here; `run` resolves to the result, as text. */
const ROWS: [what: string, target: string, without: string | false, run: () => Promise<string>][] = [
  ['start: the documented scan / an empty script, both by `npx ts-node`', 'at most 1.4', false,
    times(npx('portscanner.ts', '-H', 'localhost', '-p', '54321'), npx(EMPTY))],
  ['scan of 65,535 ports of loopback / a bare loop of Node', 'at most 1.15', false, times(ALL, tsNode(BARE_LOOP))],
  ['the same, CPU time', 'at most 1.15', false, times(ALL, tsNode(BARE_LOOP), 'cpu')],
  ['the same / `nmap -sT -p- -n -Pn`', '', notInstalled(cannotRun('nmap', '--version')),
    times(ALL, ['nmap', '-sT', '-p-', '-n', '-Pn', '127.0.0.1'])],
  ['the same / `nc -z -n 127.0.0.1 1-65535`', '', notInstalled(cannotRun('sh', '-c', 'command -v nc')),
    times(ALL, ['nc', '-z', '-n', '127.0.0.1', '1-65535'])],
  ...NETWORKS.map((where): typeof ROWS[number] => [
    `${where.ports} ports, ${where.what} / \`nmap -sT -n -Pn -T4\``, '0 wrong',
    noNetwork() || notInstalled(cannotRun('nmap', '--version')), () => compareInNetwork(where),
  ]),
  ['1000 ports, until the one behind 999 silent ones is shown as open / the same', 'at most 0.5',
    noNetwork() || notInstalled(cannotRun('nmap', '--version')), async () => ratio(await pairs(
      () => untilOpen(tsNode('portscanner.ts', '-H', TARGET, '-p', '1-1000')),
      () => untilOpen([...NMAP, '1-1000', TARGET]), 1))],
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
