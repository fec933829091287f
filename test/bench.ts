/**
 * How fast the scripts are, as ratios against other programs, measured by turns: ours, peer, ours, peer.
 * Loopback alone, and a network namespace of its own. It takes about a minute and a half.
 *
 *     npm run bench
 */
import type { ChildProcess } from 'node:child_process';
import { copyFileSync, mkdtempSync, openSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { inNetwork, noNetwork, rule, TARGET } from './network';
import { cannotRun, launch, npx, peakMemory, tsNode } from './scripts';

const ROUNDS = 5;
const MIB = 1 << 20;

const folder = mkdtempSync(join(tmpdir(), 'bench-'));
process.on('exit', () => rmSync(folder, { recursive: true }));

/** A project with nothing but an empty script. */
writeFileSync(join(folder, 'empty.ts'), '');
copyFileSync('tsconfig.json', join(folder, 'tsconfig.json'));
symlinkSync(resolve('node_modules'), join(folder, 'node_modules'));
const EMPTY = join(folder, 'empty.ts');

/** The server of the document: it prints and sends back what recv() gives. */
const PYTHON_SERVER = `
from socket import socket, AF_INET, SOCK_STREAM
listening = socket(AF_INET, SOCK_STREAM)
listening.bind(("127.0.0.1", 0))
listening.listen(1)
print("Server started on localhost, listening on TCP port", listening.getsockname()[1], flush=True)
connection, address = listening.accept()
while True:
    data = connection.recv(1024)
    if not data:
        break
    print("Received following data: " + data.decode("utf-8"))
    connection.sendall(data)
connection.close()
`;

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
async function echo(port: number, bytes: number, progress: (echoed: number) => void = () => {}): Promise<void> {
  const socket = connect({ port, host: '127.0.0.1', allowHalfOpen: true });
  const piece = Buffer.alloc(MIB, 'Hello World! ');
  let echoed = 0;
  socket.on('data', (data) => progress(echoed += data.length));
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
async function pairs(ours: () => Promise<number>, peer: () => Promise<number>): Promise<[number, number]> {
  const results: [number[], number[]] = [[], []];
  for (let round = 0; round <= ROUNDS; round++) {
    const pair = [await ours(), await peer()] as const;
    if (round > 0) pair.forEach((result, index) => results[index]?.push(result));
  }
  return [median(results[0]), median(results[1])];
}

interface Case {
  what: string;
  target: string;
  /** Why it can't be measured here, in words; false where it can. */
  without: string | false;
  /** Resolves to the result, in words. */
  run(): Promise<string>;
}

/** Two times and what the first is of the second, in words. */
const ratio = ([ours, peer]: [number, number]) =>
  `${(ours / peer).toFixed(2)} (${ours.toFixed(2)} s / ${peer.toFixed(2)} s)`;
const notInstalled = (reason: string | false) => reason && 'not installed';

const ALL = tsNode('portscanner.ts', '-H', '127.0.0.1', '-p', '1-65535', '--open');
const DROPPED = inNetwork(rule('1:1000', 'DROP'), tsNode('portscanner.ts', '-H', TARGET, '-p', '1-1000', '-t', '2'));

const CASES: Case[] = [
  {
    what: 'start: the documented scan / an empty script, both by `npx ts-node`',
    target: 'at most 1.2',
    without: false,
    run: async () => ratio(await pairs(
      () => seconds(npx('portscanner.ts', '-H', 'localhost', '-p', '54321')), () => seconds(npx(EMPTY)),
    )),
  },
  {
    what: 'scan of 65,535 ports of loopback / `nmap -sT -p- -n -Pn`',
    target: 'at most 1.0',
    without: notInstalled(cannotRun('nmap', '--version')),
    run: async () => ratio(await pairs(
      () => seconds(ALL), () => seconds(['nmap', '-sT', '-p-', '-n', '-Pn', '127.0.0.1']),
    )),
  },
  {
    what: 'the same / `nc -z -n 127.0.0.1 1-65535`',
    target: 'at most 2.0',
    without: notInstalled(cannotRun('sh', '-c', 'command -v nc')),
    run: async () => ratio(await pairs(() => seconds(ALL), () => seconds(['nc', '-z', '-n', '127.0.0.1', '1-65535']))),
  },
  {
    what: '1,000 ports that drop packets, `-t 2` / 2 s',
    target: 'at most 1.5',
    without: noNetwork(),
    run: async () => ratio(await pairs(() => seconds(DROPPED), async () => 2)),
  },
  {
    what: 'echo of 128 MiB by server.ts, bytes per second / the loop of the document in Python',
    target: 'at least 1.7',
    without: notInstalled(cannotRun('python3', '--version')),
    run: async () => {
      const [ours, peer] = await pairs(
        () => echoSeconds(tsNode('server.ts', '127.0.0.1', '0')), () => echoSeconds(['python3', '-c', PYTHON_SERVER]),
      );
      return `${(peer / ours).toFixed(2)} (${(128 / ours).toFixed(0)} MiB/s / ${(128 / peer).toFixed(0)} MiB/s)`;
    },
  },
  {
    what: 'peak memory of server.ts through 1 GiB, last quarter / first quarter',
    target: 'at most 1.2',
    without: false,
    run: async () => {
      const { server, port } = await startEcho(tsNode('server.ts', '127.0.0.1', '0'), join(folder, 'output'));
      let first = 0;
      let last = 0;
      await echo(port, 1024 * MIB, (echoed) => {
        if (first === 0 && echoed >= 256 * MIB) first = peakMemory(server);
        if (last === 0 && echoed >= 1000 * MIB) last = peakMemory(server);
      });
      return `${(last / first).toFixed(2)} (${(last / MIB).toFixed(0)} MiB / ${(first / MIB).toFixed(0)} MiB)`;
    },
  },
  {
    what: 'peak memory of the scan of 65,535 ports, more than an empty script',
    target: 'at most 60 MB',
    without: false,
    run: async () => {
      const [ours, empty] = await pairs(
        async () => (await measure(ALL)).memory, async () => (await measure(tsNode(EMPTY))).memory,
      );
      return `${((ours - empty) / 1e6).toFixed(0)} MB (${(ours / 1e6).toFixed(0)} MB / ${(empty / 1e6).toFixed(0)} MB)`;
    },
  },
];

bench();

/** Measures the cases and prints their table; shows on a terminal which one runs. */
async function bench(): Promise<void> {
  const lines = ['| what | target | result |', '| --- | --- | --- |'];
  for (const [index, { what, target, without, run }] of CASES.entries()) {
    if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${index + 1} of ${CASES.length}: ${what}`);
    lines.push(`| ${what} | ${target} | ${without || await run()} |`);
  }
  if (process.stderr.isTTY) process.stderr.write('\r\x1b[K');
  console.log(lines.join('\n'));
}
