/**
 * Speed and accuracy of the scripts, measured alternately with other programs. Prints a table of medians, of which
 * README.md beside this file shows one run, and says what to expect.
 */
import { once } from 'node:events';
import { copyFileSync, mkdtempSync, openSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { Readable } from 'node:stream';
import { text } from 'node:stream/consumers';
import { setTimeout } from 'node:timers/promises';
import { ban, inNetwork, limit, listenAt, lossy, noNetwork, outage, rule, TARGET } from './network';
import { cannotRun, launch, npx, peakMemory } from './scripts';

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

/** The command line that runs a script without npx. */
const tsNode = (script: string, ...args: string[]) =>
  [process.execPath, 'node_modules/ts-node/dist/bin.js', script, ...args];

const ALL = tsNode('portscanner.ts', '-H', '127.0.0.1', '-p', '1-65535', '--open');
const ECHO = tsNode('server.ts', '127.0.0.1', '0');
const NMAP = ['nmap', '-sT', '-n', '-Pn'];

/** The Python original of README.md, on a port that the system chooses. */
const [, SOURCE = ''] = /```python\n([^]*)# client\.py/.exec(readFileSync('README.md', 'utf8')) ?? [];
const PYTHON = ['python3', '-c', SOURCE.replace('54321))', '0))')
  .replace(/'(Server started.*)54321'/, "'$1' + str(s.getsockname()[1]), flush=True")];

/** Runs a command line, its output thrown away. Resolves to its seconds, and to its seconds of CPU. */
async function measure(commandLine: string[]): Promise<{ seconds: number; cpu: number }> {
  const timed = ['bash', '-c', 'TIMEFORMAT="%R %U %S"; time "$@" > /dev/null 2>&1', 'bash', ...commandLine];
  const printed = await text(launch(timed, ['ignore', 'ignore', 'pipe']).stderr as Readable);
  const [seconds = NaN, user = NaN, system = NaN] = printed.split(' ').map(Number);
  return { seconds, cpu: user + system };
}

/** Runs a command line, its output thrown away. Resolves to the most memory that it has held, in bytes. */
async function peak(commandLine: string[]): Promise<number> {
  const child = launch(commandLine, 'ignore');
  let memory = 0;
  for (; child.exitCode === null; await setTimeout(10)) memory = Math.max(memory, peakMemory(child));
  return memory;
}

/** The seconds that an echo server, with its stdout in a file, takes for 128 MiB. */
async function echoSeconds(commandLine: string[]): Promise<number> {
  const output = join(folder, 'output');
  const server = launch(commandLine, ['ignore', openSync(output, 'w'), 'inherit']);
  const port = () => Number(/port (\d+)\n/.exec(readFileSync(output, 'utf8'))?.[1] ?? 0);
  while (port() === 0) await setTimeout(5);
  const socket = connect({ port: port(), host: '127.0.0.1', allowHalfOpen: true });
  const begin = performance.now();
  Readable.from(Array.from({ length: 128 }, () => Buffer.alloc(1 << 20, 'Hello World! '))).pipe(socket);
  let echoed = 0;
  for await (const bytes of socket) echoed += bytes.length;
  if (echoed !== 128 << 20) throw new Error(`${echoed} bytes came back`);
  const taken = (performance.now() - begin) / 1000;
  if (server.exitCode === null) await once(server, 'close');
  return taken;
}

/**
 * Measures ours and the peer alternately, several times after a first turn that doesn't count, or once. Resolves to the
 * ratio of the medians, and the medians, as text.
 */
async function compare(ours: () => Promise<number>, peer: () => Promise<number>, turns = 5): Promise<string> {
  const results: [number[], number[]] = [[], []];
  for (let turn = turns > 1 ? -1 : 0; turn < turns; turn++) {
    const pair = [await ours(), await peer()] as const;
    if (turn >= 0) pair.forEach((result, index) => results[index]?.push(result));
  }
  const [first, second] = results.map((list) => list.sort((a, b) => a - b)[turns >> 1] ?? NaN) as [number, number];
  return `${(first / second).toFixed(2)} (${first.toFixed(2)} s / ${second.toFixed(2)} s)`;
}

const times = (ours: string[], peer: string[], what: 'seconds' | 'cpu' = 'seconds') =>
  compare(async () => (await measure(ours))[what], async () => (await measure(peer))[what]);

/** Runs a scanner in a network until it has printed something. Resolves to the seconds, and to what it printed. */
async function scan(setup: string, scanner: string[], until = /(?!)/): Promise<{ seconds: number; printed: string }> {
  const marked = ['sh', '-c', 'echo; exec "$@"', 'sh', ...scanner]; // the line marks the beginning
  const child = launch(inNetwork(setup, marked), ['ignore', 'pipe', 'ignore']);
  let begin = NaN;
  let printed = '';
  for await (const chunk of child.stdout ?? []) {
    if (printed === '') begin = performance.now();
    printed += chunk;
    if (until.test(printed)) process.kill(-(child.pid ?? NaN), 'SIGKILL');
  }
  return { seconds: (performance.now() - begin) / 1000, printed };
}

/** The ports from 1 to `last`, or only every `step`-th. */
const ports = (last: number, step = 1) => Array.from({ length: last / step }, (_, index) => (index + 1) * step);

/** How many results for the ports are wrong. nmap doesn't list the ports that have the commonest one. */
function mistakes(printed: string, last: number, open: number[], silent: number[]): number {
  const [, rest] = /^Not shown: \d+ (\w+)/m.exec(printed) ?? [];
  const found = new Map([...printed.matchAll(/^(?:\[\w+\] TCP port )?(\d+)(?:\/tcp| is) +(\w+)/gm)]
    .map(([, port, result]) => [Number(port), result]));
  const right = (port: number) => (open.includes(port) ? 'open' : silent.includes(port) ? 'filtered' : 'closed');
  return ports(last).filter((port) => (found.get(port) ?? rest) !== right(port)).length;
}

const FIVE = [25, 50, 1000, 1500, 2000];
const accept = (open: number[]) => open.map((port) => rule(`${port}`, 'ACCEPT')).join('');

type Network = [what: string, setup: string, last?: number, open?: number[], silent?: number[], turns?: number];
const NETWORKS: Network[] = [
  ['the host sends at most 250 RSTs a second', limit('OUTPUT', 'RST RST', 250)],
  ['the host takes at most 250 SYNs a second', limit('INPUT', 'SYN,ACK SYN', 250)],
  ['5% of the packets are lost each way', lossy(0.05)],
  ["the host doesn't reply for 3 s", outage(500, 3)],
  ['a firewall bans a source for 3 s if it sends 300 SYNs in a second', ban(300, 300)],
  ['20 ports are silent', ports(1000, 50).map((port) => rule(`${port - 1}`, 'DROP')).join(''), 1000, ports(1000, 25),
    ports(1000, 50).map((port) => port - 1)],
  ['all ports are silent', rule('1:65535', 'DROP'), 65535, [], ports(65535), 1],
  ['all but five ports are silent', accept(FIVE) + rule('1:2000', 'DROP'), 2000, FIVE,
    ports(2000).filter((port) => !FIVE.includes(port)), 1],
  ['the host rejects all but five, with one ICMP error a second', accept(ports(100, 20)) + rule('1:100', 'REJECT'), 100,
    ports(100, 20), [], 1],
];

/** Ours and nmap in a network: the medians of their seconds, and their wrong results in all turns. */
async function compareIn([, setup, last = 1000, open = ports(last, 25), silent = [], turns = 3]: Network) {
  const wrong = [0, 0];
  const scanWith = (index: 0 | 1, scanner: string[]) => async () => {
    const { seconds, printed } = await scan((open.length > 0 ? listenAt(open) : '') + setup, scanner);
    wrong[index] = (wrong[index] ?? 0) + mistakes(printed, last, open, silent);
    return seconds;
  };
  const ours = scanWith(0, tsNode('portscanner.ts', '-H', TARGET, '-p', `1-${last}`));
  const limited = ['timeout', '120', ...NMAP]; // 65,535 silent ports would take it more than ten minutes
  const peer = scanWith(1, [...limited, '-T4', '-p', `1-${last}`, TARGET]);
  return `${await compare(ours, peer, turns)}, ${wrong.join(' / ')} wrong`;
}

/** The seconds until a scan of 1,000 ports, all silent but the last, prints that this one is open. */
async function untilOpen(scanner: string[]): Promise<number> {
  const setup = listenAt([1000]) + rule('1:999', 'DROP');
  return (await scan(setup, scanner, /1000(\/tcp)? .*open/)).seconds;
}

/** The rows: `without` says why one can't be measured here; `run` resolves to the result, as text. */
type Row = [what: string, target: string, without: string | false, run: () => Promise<string>];
const noNmap = cannotRun('nmap', '--version') && 'not installed';
const noPython = cannotRun('python3', '--version') && 'not installed';
const ROWS: Row[] = [
  ['start: the documented scan / an empty script, both by `npx ts-node`', 'at most 1.4', false,
    () => times(npx('portscanner.ts', '-H', 'localhost', '-p', '54321'), npx(EMPTY))],
  ['scan of 65,535 ports of loopback / a bare loop of Node', 'at most 1.15', false,
    () => times(ALL, tsNode(BARE_LOOP))],
  ['the same, CPU time', 'at most 1.15', false, () => times(ALL, tsNode(BARE_LOOP), 'cpu')],
  ['the same / `nmap -sT -n -Pn`', '', noNmap, () => times(ALL, [...NMAP, '-p-', '127.0.0.1'])],
  ['the same / `nc -z -n`', '', cannotRun('sh', '-c', 'command -v nc') && 'not installed',
    () => times(ALL, ['nc', '-z', '-n', '127.0.0.1', '1-65535'])],
  ...NETWORKS.map((network): Row => [`${network[2] ?? 1000} ports, ${network[0]} / \`nmap -sT -n -Pn -T4\``, '0 wrong',
    noNetwork() || noNmap, () => compareIn(network)]),
  ['1000 ports, until the one behind 999 silent ones is shown as open / the same', 'at most 0.5', noNetwork() || noNmap,
    () => compare(() => untilOpen(tsNode('portscanner.ts', '-H', TARGET, '-p', '1-1000')),
      () => untilOpen([...NMAP, '-T4', '-p', '1-1000', TARGET]), 1)],
  ['echo of 128 MiB by server.ts / the Python original', 'at most 1.1', noPython,
    () => compare(() => echoSeconds(ECHO), () => echoSeconds(PYTHON))],
  ['peak memory of the scan of 65,535 ports of loopback', 'at most 150 MB', false,
    async () => `${(await peak(ALL) / 1e6).toFixed(0)} MB`],
];

void bench();

/** Measures the rows, and prints each as it is known. */
async function bench(): Promise<void> {
  console.log('| what | target | result |\n| --- | --- | --- |');
  for (const [what, target, without, run] of ROWS) console.log(`| ${what} | ${target} | ${without || await run()} |`);
}
