import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import type { Socket } from 'node:net';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import {
  ban, dropFirst, inNetwork, limit, listenAt, lossy, noNetwork, ONE_PORT, outage, rule, TARGET,
} from './network';
import { listen } from './peers';
import { cannotRun, compiled, node, noIPv6, noStrace, run, scratch, start, unless } from './scripts';

const scan = (...args: string[]) => node('portscanner.ts', ...args);
const scanTarget = (...args: string[]) => scan('-H', TARGET, ...args);

/** What a scan of the address prints, given lines such as '80 is open'. */
function results(address: string, ...lines: string[]): string {
  const line = (text: string) => `${text.endsWith('open') ? '[OK]' : '[FAILED]'} TCP port ${text}\n`;
  return `Connecting to ${address}...\n${lines.map(line).join('')}`;
}

/** The lines of the ports from first to last: all are closed (or `usual`), except for the others. */
const lines = (first: number, last: number, others: Record<number, string> = {}, usual = 'closed') =>
  Array.from({ length: last - first + 1 }, (_, at) => `${first + at} is ${others[first + at] ?? usual}`);

/** The scanner with other numbers of probes in flight: in the first round, and at least in later ones. */
const withInFlight = (first: number, atLeast: number) => (...args: string[]) => [
  process.execPath,
  compiled('portscanner.ts', { 'inFlight = 4096': `inFlight = ${first}`, 'max(1024,': `max(${atLeast},` }),
  ...args,
];
const oneByOne = withInFlight(1, 1);

/** A scan with a fault or a delay that strace injects into one of its system calls. */
const scanWithFault = ([call, fault]: readonly [string, string], ...args: string[]) => [
  'strace', '-f', '--seccomp-bpf', '-qq', '-o', '/dev/null', '-e', `trace=${call}`, '-e', `inject=${call}:${fault}`,
  ...scan(...args),
];

/** A scanner under strace, which logs the given system calls of its main thread. */
const traced = (log: string, calls: string, scanner: string[]) =>
  ['strace', '-qq', '-o', log, '-e', `trace=${calls}`, ...scanner];

const needsNetwork = unless(noNetwork());
const needsStrace = unless(needsNetwork.skip || noStrace());

type Printing = {
  args: string; // as typed, after -H and the address
  lines: string[]; // that are printed, in any order
  setup?: string; address?: string; fault?: [call: string, fault: string];
};

/** A test: a scan of the target, in the network that the setup creates, prints those lines and no error. */
function prints(name: string, { args, lines: expected, setup = '', address = TARGET, fault }: Printing): void {
  test(name, fault ? needsStrace : needsNetwork, async (t) => {
    const options = ['-H', address, ...args.split(' ')];
    const scanner = fault ? scanWithFault(fault, ...options) : scan(...options);
    const { status, stdout, stderr } = await run(t, inNetwork(setup, scanner));
    assert.deepEqual(stdout.split('\n').sort(), results(address, ...expected).split('\n').sort());
    assert.deepEqual([status, stderr], [expected.some((line) => line.endsWith('open')) ? 0 : 1, '']);
  });
}

describe('portscanner.ts', { concurrency: 7 }, () => {
  // From port 32768 on, the system also chooses the scanner's own ports.
  prints('a scan of 5,000 ports finds exactly those on which a server is listening', {
    setup: listenAt([30_001, 33_333, 35_000], 'here'), address: '127.0.0.1', args: '-p 30001-35000 --open',
    lines: ['30001 is open', '33333 is open', '35000 is open'],
  });

  for (const [network, setup, timeout] of [
    ['whose host sends 100 RSTs, and then at most 200 a second', limit('OUTPUT', 'RST RST', 200), 3],
    ['whose host takes 100 SYNs, and then at most 200 a second', limit('INPUT', 'SYN,ACK SYN', 200), 3],
    ['that loses 5% of the packets each way', lossy(0.05), 1.5], // with two SYNs, some ports stay silent
    ['whose firewall bans a source for 2 s once it exceeds 60 SYNs a second after a burst of 200', ban(60, 200, 2), 3],
    ['whose host is silent for two seconds in the middle of the scan', outage(300, 2), 1.5],
  ] as const) {
    prints(`every result is right in a network ${network}`, {
      setup: listenAt([1, 300, 500]) + setup, args: `-p 1-600 -t ${timeout}`,
      lines: lines(1, 600, { 1: 'open', 300: 'open', 500: 'open' }),
    });
  }

  test('an open port of an IPv6 address is open', unless(noIPv6()), async (t) => {
    const port = await listen(t, () => {}, '::1');
    assert.equal((await run(t, scan('-H', '::1', '-p', `${port}`))).stdout, results('::1', `${port} is open`));
  });

  const LATE: [string, string] = ['connect', 'delay_exit=1000000']; // connect() returns a second later, after the reply
  prints('a reply that arrived in time counts, even if the scanner learns of it too late',
    { args: '-p 80 -t 0.5', fault: LATE, lines: ['80 is closed'] });
  for (const [what, reset] of [
    ['resets', (connection: Socket) => connection.resetAndDestroy()],
    ['closes and resets', (connection: Socket) => connection.end(() => connection.resetAndDestroy())],
  ] as const) {
    test(`the port of a server that ${what} a connection right after the handshake is open`, needsStrace, async (t) => {
      const port = await listen(t, reset);
      const { stdout } = await run(t, scanWithFault(LATE, '-H', '127.0.0.1', '-p', `${port}`));
      assert.equal(stdout, results('127.0.0.1', `${port} is open`));
    });
  }

  prints('a port that TCP connects to itself is closed',
    { setup: ONE_PORT, address: '127.0.0.1', args: '-p 54321', lines: ['54321 is closed'] });
  prints("a port on another host isn't mistaken for the scanner's own port of that number",
    { setup: ONE_PORT + listenAt([54321]), args: '-p 54321', lines: ['54321 is open'] });

  // A reply settles the port: none of these scans takes the hour that -t allows.
  const rejected = (first: number, ...replies: string[]) =>
    replies.map((reply, at) => rule(`${first + at}`, `REJECT --reject-with ${reply}`)).join('');
  prints('a port that a firewall rejects is closed at once if it sends an RST or "port unreachable"',
    { setup: rejected(80, 'tcp-reset', 'icmp-port-unreachable'), args: '-p 80-81 -t 3600', lines: lines(80, 81) });
  prints('a port that a firewall rejects is filtered at once if it sends any other ICMP error', {
    setup: rejected(80, 'icmp-host-prohibited', 'icmp-net-unreachable', 'icmp-proto-unreachable'),
    args: '-p 80-82 -t 3600', lines: lines(80, 82, {}, 'filtered'),
  });
  prints('a port for which connect() fails at once because of a local rule (EACCES, EPERM) counts as silent', {
    setup: 'ip rule add ipproto tcp dport 80 prohibit\n', args: '-p 80-82 -t 3600',
    fault: ['connect', 'error=EPERM:when=2+3'], // port 81, and again in the second round
    lines: ['80 is filtered', '81 is filtered', '82 is closed'],
  });
  prints('a port for which connect() fails at once with EHOSTUNREACH is probed again, too',
    { args: '-p 80-81', fault: ['connect', 'error=EHOSTUNREACH:when=1'], lines: lines(80, 81) });

  test('ports in lists and ranges are probed in the order given, each once', needsNetwork, async (t) => {
    const { stdout } = await run(t, inNetwork('', oneByOne('-H', TARGET, '-p', '-2,9,7,5-8,6,7,65534-')));
    const ports = [1, 2, 9, 7, 5, 6, 8, 65534, 65535];
    assert.equal(stdout, results(TARGET, ...ports.map((port) => `${port} is closed`)));
  });

  prints('a port has as long to reply as -t says', { // the fifth SYN is answered, after 4 s (15 on an old Linux)
    setup: listenAt([80]) + dropFirst('80', 4), args: '-p 80 -t 20', lines: ['80 is open'],
  });
  prints('by default, a port whose first SYN is lost has time to reply to the second',
    { setup: listenAt([80]) + dropFirst('80'), args: '-p 80', lines: ['80 is open'] });

  test('a result is printed at once, even if ports before it are silent', needsNetwork, async (t) => {
    const setup = listenAt([85]) + rule('80:84', 'DROP');
    const scanner = start(t, inNetwork(setup, scanTarget('-p', '80-86', '-t', '3600')));
    await scanner.printed(/TCP port 86 is closed\n/);
    scanner.process.kill('SIGKILL');
    assert.deepEqual((await scanner.ended).stdout, results(TARGET, '85 is open', '86 is closed'));
  });

  prints('--open prints no port that is closed or filtered, and the status is 1 if none is open',
    { setup: rule('23', 'DROP'), args: '-p 22-24 -t .5 --open', lines: [] });

  // The rounds. Each sends one SYN to each silent port, since this rule drops those that the kernel resends.
  const ONE_SYN = 'iptables -A OUTPUT -p tcp --syn -m hashlimit --hashlimit-mode srcport,dstport --hashlimit-name one'
    + ' --hashlimit-above 1/hour --hashlimit-burst 1 -j DROP\n';
  prints('ports that drop packets are filtered, and if no port replies, they are not probed again', {
    setup: ONE_SYN + dropFirst('80:81'), args: '--port 80-81 --timeout 0.2', lines: lines(80, 81, {}, 'filtered'),
  });
  prints('a port with an ICMP error is probed again, as a silent one is', {
    setup: dropFirst('83', 1, 'REJECT --reject-with icmp-host-prohibited'), args: '-p 82-83', lines: lines(82, 83),
  });

  test('silent ports are probed again, half as many at a time, until no reply comes', needsStrace, async (t) => {
    const scanner = withInFlight(8, 2)('-H', TARGET, '-p', '1-9', '-t', '0.4');
    const setup = rule('1:6', 'DROP') + dropFirst('7', 2) + dropFirst('8') + ONE_SYN; // three rounds bring a reply
    const log = join(scratch(t), 'log');
    await run(t, inNetwork(setup, traced(log, 'connect,close', scanner)));

    const inFlight = new Set<string>(); // the descriptors of their sockets
    const most = [0]; // of them before the first round, and in each
    const calls = readFileSync(log, 'utf8').matchAll(/(close|connect)\((\d+)(?:, .*htons\((\d+)\))?/g);
    for (const [, call, descriptor = '', port] of calls) {
      if (call === 'close') inFlight.delete(descriptor);
      else inFlight.add(descriptor);
      if (port === '1') most.push(0); // a new round
      most.push(Math.max(most.pop() ?? 0, inFlight.size));
    }
    assert.deepEqual(most, [0, 8, 4, 2, 2]);
  });

  test('probes start one a turn of the event loop, so that a timeout starts with its SYN', needsStrace, async (t) => {
    const log = join(scratch(t), 'log');
    const scanner = traced(log, 'connect,epoll_pwait', scanTarget('-p', '1-64', '-t', '1'));
    await run(t, inNetwork(rule('1:64', 'DROP'), scanner));
    const turns = readFileSync(log, 'utf8').split('epoll_pwait').map((calls) => calls.split('connect(').length - 1);
    assert.deepEqual(turns.filter((connects) => connects > 0), Array(64).fill(1));
  });

  prints('every result is right if file descriptors run out', {
    setup: `${listenAt([1, 300])}${rule('2', 'DROP')}${rule('500', 'DROP')}ulimit -n 48\n`, args: '-p 1-600 -t 0.5',
    lines: lines(1, 600, { 1: 'open', 2: 'filtered', 300: 'open', 500: 'filtered' }),
  });
  for (const code of ['ENFILE', 'ENOBUFS', 'ENOMEM']) {
    prints(`a port for which the system has no socket (${code}) is probed later`, {
      args: '-p 80-82', fault: ['socket', `error=${code}:when=2`], lines: lines(80, 82),
    });
  }
  for (const [what, ports, fault, error] of [
    ['if there is no file descriptor at all', '80', ['socket', 'error=EMFILE'],
      'the system has run out of sockets (see "ulimit -n")'],
    ['after a local error, even if a port is silent', '80-81', ['connect', 'error=EADDRNOTAVAIL:when=2'],
      `connect EADDRNOTAVAIL ${TARGET}:81 - Local (0.0.0.0:0)`],
  ] as const) {
    test(`the scan ends at once ${what}, with an error and status 2`, needsStrace, async (t) => {
      const scanner = scanWithFault(fault, '-H', TARGET, '-p', ports, '-t', '3600');
      assert.deepEqual(await run(t, inNetwork(rule('80', 'DROP'), scanner)),
        { status: 2, stdout: results(TARGET), stderr: `portscanner.ts: ${error}\n` });
    });
  }

  const needsTerminal = unless(needsNetwork.skip || cannotRun('script', '--version'));
  const PROGRESS = '\x1b[K2 left\r\x1b[K1 left\r\x1b[K\r'.repeat(2); // in two rounds; \x1b[K erases the line
  const [known, silent] = [results(TARGET, '79 is closed'), results(TARGET, '80 is filtered', '81 is filtered')];
  for (const [where, redirection, shown] of [
    ['among the results', '', known + PROGRESS + silent.replace(/^.*\n/, '')],
    ['even if stdout is a file', '> /run/file', PROGRESS],
  ] as const) {
    test(`a line on the terminal shows how many ports are left in a round, ${where}`, needsTerminal, async (t) => {
      const scanner = oneByOne('-H', TARGET, '-p', '79-81', '-t', '1').map((word) => `'${word}'`).join(' ');
      const onTerminal = ['script', '-qec', `${scanner} ${redirection}`, '/dev/null'];
      const { stdout } = await run(t, inNetwork(rule('80:81', 'DROP'), onTerminal));
      const unrepeated = stdout.replace(/(\x1b\[K\d left\r)\1+/g, '$1');
      assert.equal(unrepeated, shown.replaceAll('\n', '\r\n'));
    });
  }

  test('a value can be attached to its option', needsNetwork, async (t) => {
    const { stdout } = await run(t, inNetwork('', scan(`-H${TARGET}`, '-p22,80', '-t.5')));
    assert.equal(stdout, results(TARGET, '22 is closed', '80 is closed'));
  });

  prints('-p 22 -p 80 scans both ports', { args: '-p 22 -p 80', lines: ['22 is closed', '80 is closed'] });
});
