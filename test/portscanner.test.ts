import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import type { Socket } from 'node:net';
import { join } from 'node:path';
import { buffer } from 'node:stream/consumers';
import { describe, test } from 'node:test';
import {
  ban, dropFirst, inNetwork, limit, listenAt, lossy, noNetwork, ONE_PORT, outage, rule, suspended, TARGET,
} from './network';
import { accepted, listen } from './peers';
import {
  cannotRun, edited, LIMIT, node, noHosts, noIPv6, noStrace, run, scratch, start, strace, withHosts,
} from './scripts';

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

/** The scanner with one piece of its source replaced, so that fewer ports or rounds show the same. */
const scanWith = (before: string, after: string) => (...args: string[]) =>
  edited('portscanner.ts', before, after, ...args);

/** The scanner with a fault or a delay in system calls. */
const scanInjected = (call: string, injected: string) => (...args: string[]) => strace(call, injected, scan(...args));

/** A scanner under strace, which logs the given system calls of its main thread. */
const traced = (log: string, calls: string, scanner: string[]) =>
  ['strace', '-qq', '-o', log, '-e', `trace=${calls}`, ...scanner];

const needsNetwork = { ...LIMIT, skip: noNetwork() };
const needsStrace = { ...LIMIT, skip: noStrace() };
const needsBoth = { ...LIMIT, skip: needsNetwork.skip || needsStrace.skip };

type Printing = {
  args: string; // as typed, after -H and the address
  lines: string[]; // that are printed, in any order unless isOrdered
  setup?: string; isOrdered?: boolean; address?: string; scanner?: typeof scan; needs?: object;
};

/** A test: a scan of the target, in the network that the setup creates, prints those lines and no error. */
function prints(name: string, { args, lines: expected, setup = '', isOrdered = false, ...more }: Printing): void {
  const { address = TARGET, scanner = scan, needs = needsNetwork } = more;
  test(name, needs, async (t) => {
    const { status, stdout, stderr } = await run(t, inNetwork(setup, scanner('-H', address, ...args.split(' '))));
    const sorted = (text: string) => (isOrdered ? text : text.split('\n').sort().join('\n'));
    assert.equal(sorted(stdout), sorted(results(address, ...expected)));
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
  ] as const) {
    prints(`every result is right in a network ${network}`, {
      setup: listenAt([1, 300, 500]) + setup, args: `-p 1-600 -t ${timeout}`,
      lines: lines(1, 600, { 1: 'open', 300: 'open', 500: 'open' }),
    });
  }
  prints('every result is right if the host is silent for two seconds in the middle of a scan', {
    setup: listenAt([1, 1500, 2000]) + outage(1000, 2), args: '-p 1-2000 -t 1.5',
    lines: lines(1, 2000, { 1: 'open', 1500: 'open', 2000: 'open' }),
  });

  test('an open port of an IPv6 address is open', { ...LIMIT, skip: noIPv6() }, async (t) => {
    const port = await listen(t, () => {}, '::1');
    assert.equal((await run(t, scan('-H', '::1', '-p', `${port}`))).stdout, results('::1', `${port} is open`));
  });

  test('the scanned server sees the connection close cleanly', LIMIT, async (t) => {
    const { port, connection } = await accepted(t);
    start(t, scan('-H', '127.0.0.1', '-p', `${port}`));
    assert.equal((await buffer(await connection)).length, 0); // it would reject on a reset
  });

  for (const [what, reset] of [
    ['resets', (connection: Socket) => connection.resetAndDestroy()],
    ['closes and resets', (connection: Socket) => connection.end(() => connection.resetAndDestroy())],
  ] as const) {
    test(`the port of a server that ${what} a connection right after the handshake is open`, needsStrace, async (t) => {
      const port = await listen(t, reset);
      const late = scanInjected('connect', 'delay_exit=1000000'); // connect() returns after the RST
      const { stdout } = await run(t, late('-H', '127.0.0.1', '-p', `${port}`));
      assert.equal(stdout, results('127.0.0.1', `${port} is open`));
    });
  }

  prints('a port that TCP connects to itself is closed',
    { setup: ONE_PORT, address: '127.0.0.1', args: '-p 54321', lines: ['54321 is closed'] });
  prints("a port on another host isn't mistaken for the scanner's own port of that number", {
    setup: ONE_PORT + listenAt([54321]), args: '-p 54321', lines: ['54321 is open'],
  });
  prints('a port that drops packets is filtered',
    { setup: rule('80', 'DROP'), args: '--port 80 --timeout 0.5', lines: ['80 is filtered'] });

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
    setup: 'ip rule add ipproto tcp dport 80 prohibit\n', args: '-p 80-82 -t 3600', needs: needsBoth,
    scanner: scanInjected('connect', 'error=EPERM:when=2+3'), // port 81, and again in the second round
    lines: ['80 is filtered', '81 is filtered', '82 is closed'],
  });
  prints('a port for which connect() fails at once with EHOSTUNREACH is probed again, too',
    { args: '-p 80-81', needs: needsBoth, scanner: scanInjected('connect', 'error=EHOSTUNREACH:when=1'),
      lines: lines(80, 81) });

  prints('ports in lists and ranges are probed in the order given, each once', {
    setup: listenAt([6, 9]), args: '-p -2,9,7,5-8,6,7,65534-', scanner: scanWith('= 4096', '= 1'), isOrdered: true,
    lines: [...lines(1, 2), '9 is open', '7 is closed', '5 is closed', '6 is open', '8 is closed',
      ...lines(65534, 65535)],
  });

  prints('a port has as long to reply as -t says', { // the fifth SYN is answered, after 4 s (15 on an old Linux)
    setup: listenAt([80]) + dropFirst('80', 4), args: '-p 80 -t 20', lines: ['80 is open'],
  });
  prints('by default, a port whose first SYN is lost has time to reply to the second',
    { setup: listenAt([80]) + dropFirst('80'), args: '-p 80', lines: ['80 is open'] });

  prints('a reply counts if it arrived in time, even if the scanner was suspended', {
    setup: dropFirst('80', 2), args: '-p 80 -t 4', lines: ['80 is closed'],
    scanner: (...args) => suspended(scan(...args)),
  });

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
  prints('silent ports are not probed again if no port has replied',
    { setup: ONE_SYN + dropFirst('80:81'), args: '-p 80-81 -t 0.2', lines: lines(80, 81, {}, 'filtered') });
  prints('silent ports are probed again until a round brings no reply', {
    setup: ONE_SYN + dropFirst('2') + dropFirst('3', 2) + dropFirst('4', 4), args: '-p 1-4 -t 0.2', isOrdered: true,
    lines: lines(1, 4, { 4: 'filtered' }),
  });
  prints('a port with an ICMP error is probed again, as a silent one is', {
    setup: dropFirst('83', 1, 'REJECT --reject-with icmp-host-prohibited'), args: '-p 82-83', lines: lines(82, 83),
  });
  prints('silent ports are probed in 100 rounds at most', {
    setup: ONE_SYN + [1, 2, 3].map((count) => dropFirst(`${count + 1}`, count)).join(''),
    scanner: scanWith('round <= 100', 'round <= 3'), args: '-p 1-4 -t 0.2', lines: lines(1, 4, { 4: 'filtered' }),
  });
  for (const [what, before, after, first, later] of [
    ['the limit of the first round', 'inFlight = 4096', 'inFlight = 40', 40, 40], // and those of all others
    ['the limit of later rounds', 'Math.max(1024, ', 'Math.max(20, ', 80, 20],
    ['an eighth of the silent ports in later rounds', 'Math.max(1024, ', 'Math.max(1, ', 80, 10],
  ] as const) {
    test(`${what} bounds the probes in flight`, needsBoth, async (t) => {
      const log = join(scratch(t), 'log');
      const scanner = scanWith(before, after)('-H', TARGET, '-p', '1-80', '-t', '0.5');
      await run(t, inNetwork(rule('1:79', 'DROP'), traced(log, 'connect,close', scanner)));
      const inFlight = new Set<string>(); // the descriptors of their sockets
      const counts: number[] = []; // how many are in flight after each connect()
      for (const [, opened, closed] of readFileSync(log, 'utf8').matchAll(/connect\((\d+)|close\((\d+)/g)) {
        if (closed !== undefined) inFlight.delete(closed);
        if (opened !== undefined) counts.push(inFlight.add(opened).size);
      }
      const [inFirst, inSecond] = [counts.slice(0, 80), counts.slice(80)]; // probes in that round
      assert.deepEqual([Math.max(...inFirst), Math.max(...inSecond), inSecond.length], [first, later, 79]);
    });
  }

  test('Node handles replies after every 64 probes', needsStrace, async (t) => {
    const log = join(scratch(t), 'log');
    await run(t, traced(log, 'connect,epoll_pwait', scan('-H', '127.0.0.1', '-p', '1-256')));
    const bursts = readFileSync(log, 'utf8').split('epoll_pwait').map((calls) => calls.split('connect(').length - 1);
    assert.deepEqual(bursts.filter((probes) => probes > 0), [63, 64, 64, 64, 1]);
  });

  prints('every result is right if file descriptors run out', {
    setup: `${listenAt([1, 300, 1500])}${rule('2', 'DROP')}${rule('1000', 'DROP')}ulimit -n 48\n`,
    args: '-p 1-1500 -t 0.5',
    lines: lines(1, 1500, { 1: 'open', 2: 'filtered', 300: 'open', 1000: 'filtered', 1500: 'open' }),
  });
  for (const code of ['ENFILE', 'ENOBUFS', 'ENOMEM']) {
    prints(`a port for which the system has no socket (${code}) is probed later`, {
      args: '-p 80-82', scanner: scanInjected('socket', `error=${code}:when=2`), lines: lines(80, 82), needs: needsBoth,
    });
  }
  for (const [what, call, fault, ports, error] of [
    ['if there is no file descriptor at all', 'socket', 'error=EMFILE', '81',
      'the system has no socket for a probe (see "ulimit -n")'],
    ['after a local error, even if a port is silent', 'connect', 'error=EADDRNOTAVAIL:when=2', '80-81',
      `connect EADDRNOTAVAIL ${TARGET}:81 - Local (0.0.0.0:0)`],
  ] as const) {
    test(`the scan ends at once ${what}, with an error and status 2`, needsBoth, async (t) => {
      const scanner = scanInjected(call, fault)('-H', TARGET, '-p', ports, '-t', '3600');
      assert.deepEqual(await run(t, inNetwork(rule('80', 'DROP'), scanner)),
        { status: 2, stdout: results(TARGET), stderr: `portscanner.ts: ${error}\n` });
    });
  }

  /** A command line on a terminal of its own, which is both its stdout and its stderr unless they are redirected. */
  const onTerminal = (commandLine: string[], redirection = '') =>
    ['script', '-qec', `${commandLine.map((word) => `'${word}'`).join(' ')} ${redirection}`, '/dev/null'];
  const needsTerminal = { ...LIMIT, skip: needsNetwork.skip || cannotRun('script', '--version') };

  test('on a terminal, a line shows how many ports have replied, until the scan ends', needsTerminal, async (t) => {
    const { stdout } = await run(t, inNetwork(rule('81', 'DROP'), onTerminal(scanTarget('-p', '80-81', '-t', '1.2'))));
    const shown = results(TARGET, '80 is closed', '81 is filtered').replaceAll('\n', '\r\n');
    assert.match(stdout, /(\x1b\[K1\/2\r){8}/); // two rounds of 1.2 s have time for 23, if the machine is idle
    assert.equal(stdout.replace(/\x1b\[K[01]\/2\r/g, ''), `${shown}\x1b[K`); // \x1b[K erases the line
  });

  for (const [what, ports, redirection] of [
    ['whose stdout is a pipe', '80-81', '| cat'], ['whose stderr is a file', '80-81', '2> /run/file; cat /run/file'],
    ['of one port', '80', ''],
  ] as const) {
    test(`a scan ${what} shows no progress`, needsTerminal, async (t) => {
      const scanner = onTerminal(scanTarget('-p', ports, '-t', '0.5'), redirection);
      const { stdout } = await run(t, inNetwork(rule('80', 'DROP'), scanner));
      assert.doesNotMatch(stdout, /\d\/\d/);
      assert.match(stdout, /TCP port 80 is filtered/);
    });
  }

  test('a name that has only IPv6 addresses ends the scan with status 2', { ...LIMIT, skip: noHosts() }, async (t) => {
    const commandLine = withHosts(t, '2001:db8::1 six.test\n', scan('-H', 'six.test', '-p80'), '--net');
    const { status, stdout, stderr } = await run(t, commandLine);
    assert.match(stderr, /^portscanner\.ts: getaddrinfo E\w+ six\.test\n$/);
    assert.deepEqual([status, stdout], [2, '']);
  });

  test('a value can be attached to its option, and the last one counts', needsNetwork, async (t) => {
    const { stdout } = await run(t, inNetwork('', scan('-Ha', `--host=${TARGET}`, '-p9', '-p=80', '-t.5')));
    assert.equal(stdout, results(TARGET, '80 is closed'));
  });
});
