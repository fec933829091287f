import assert from 'node:assert/strict';
import { existsSync, writeFileSync } from 'node:fs';
import type { Socket } from 'node:net';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import {
  ABSENT, ban, dropFirst, inNetwork, limit, listenAt, lossy, noLoopback, noNetwork, noOffline, offline, outage, probes,
  QUICK_ARP, rule, selfConnecting, TARGET, TARGET_IPV6,
} from './network';
import { accepted, closedPort, listen, receiveAll } from './peers';
import {
  cannotRun, edited, intoPipe, LIMIT, node, noIPv6, noMountedHosts, noStrace, run, scratch, start, strace,
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

/** Runs a scanner, and prints how many probes are in flight, again and again, until it ends. */
const counting = (scanner: string[]) => ['sh', '-c',
  '"$@" > /dev/null & while kill -0 $! 2> /dev/null; do grep -c " 02 " /proc/net/tcp; sleep 0.1; done', 'sh',
  ...scanner];

const needsNetwork = { ...LIMIT, skip: noNetwork() };
const needsOffline = { ...LIMIT, skip: noOffline() };
const needsStrace = { ...LIMIT, skip: noStrace() };
const needsBoth = { ...LIMIT, skip: noNetwork() || noStrace() };

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

type Failing = { commandLine: string[]; error: string; address?: string; needs?: object };

/** A test: the scan ends with status 2 and an error, after it has printed that it connects to the address, if any. */
function fails(name: string, { commandLine, error, address, needs = LIMIT }: Failing): void {
  test(name, needs, async (t) => {
    const stdout = address === undefined ? '' : results(address);
    assert.deepEqual(await run(t, commandLine), { status: 2, stdout, stderr: `portscanner.ts: ${error}\n` });
  });
}

describe('portscanner.ts', { concurrency: 7 }, () => {
  // From port 32768 on, the system also chooses the scanner's own ports.
  prints('a scan of 5,000 ports finds exactly those on which a server is listening', {
    setup: listenAt([30_001, 33_333, 35_000], 'here'), address: '127.0.0.1', args: '-p 30001-35000 --open',
    lines: ['30001 is open', '33333 is open', '35000 is open'],
  });

  const NETWORKS: [network: string, setup: string, timeout: number][] = [
    ['whose host sends 100 RSTs, and then at most 200 a second', limit('OUTPUT', 'RST RST', 200), 3],
    ['whose host takes 100 SYNs, and then at most 200 a second', limit('INPUT', 'SYN,ACK SYN', 200), 3],
    ['that loses 5% of the packets each way', lossy(0.05), 1.5], // with two SYNs, some ports stay silent
    ['whose firewall bans a source for 2 s once it exceeds 60 SYNs a second after a burst of 200', ban(60, 200, 2), 3],
  ];
  for (const [network, setup, timeout] of NETWORKS) {
    prints(`every result is right in a network ${network}`, {
      setup: listenAt([1, 300, 500]) + setup, args: `-p 1-600 -t ${timeout}`,
      lines: lines(1, 600, { 1: 'open', 300: 'open', 500: 'open' }),
    });
  }
  prints('every result is right if the host is silent for two seconds in the middle of a scan', {
    setup: listenAt([1, 1500, 2000]) + outage(1000, 2), args: '-p 1-2000 -t 1.5',
    lines: lines(1, 2000, { 1: 'open', 1500: 'open', 2000: 'open' }),
  });

  test('a port on which nothing is listening is closed, and the status is 1', LIMIT, async (t) => {
    const port = await closedPort();
    assert.deepEqual(await run(t, scan('--host', 'localhost', '--port', `${port}`)), {
      status: 1, stderr: '', stdout: results('127.0.0.1', `${port} is closed`),
    });
  });

  test('an open port of an IPv6 address is open', { ...LIMIT, skip: noIPv6() }, async (t) => {
    const port = await listen(t, () => {}, '::1');
    assert.equal((await run(t, scan('-H', '::1', '-p', `${port}`))).stdout, results('::1', `${port} is open`));
  });

  test('the scanned server sees the connection close cleanly', LIMIT, async (t) => {
    const { port, connection } = await accepted(t);
    start(t, scan('-H', '127.0.0.1', '-p', `${port}`));
    assert.equal((await receiveAll(await connection)).length, 0); // it would reject on a reset
  });

  const RESETS: Record<string, (connection: Socket) => unknown> = {
    'resets a connection': (connection) => connection.resetAndDestroy(),
    'closes and resets a connection': (connection) => connection.end(() => connection.resetAndDestroy()),
  };
  for (const [what, reset] of Object.entries(RESETS)) {
    test(`the port of a server that ${what} right after the handshake is open`, needsStrace, async (t) => {
      const port = await listen(t, reset);
      // connect() returns after the RST.
      const { stdout } = await run(t, scanInjected('connect', 'delay_exit=300000')('-H', '127.0.0.1', '-p', `${port}`));
      assert.equal(stdout, results('127.0.0.1', `${port} is open`));
    });
  }

  test('a port that TCP connects to itself is closed', { ...LIMIT, skip: noLoopback() }, async (t) => {
    const { stdout } = await run(t, selfConnecting(scan('-H', '127.0.0.1', '-p', '54321')));
    assert.equal(stdout, results('127.0.0.1', '54321 is closed'));
  });
  prints("a port on another host isn't mistaken for the scanner's own port of that number", {
    setup: `echo 54321 54321 > /proc/sys/net/ipv4/ip_local_port_range\n${listenAt([54321])}`, args: '-p 54321',
    lines: ['54321 is open'],
  });
  prints('a port that drops packets is filtered',
    { setup: rule('80', 'DROP'), args: '-p 80 -t 0.5', lines: ['80 is filtered'] });

  // A reply settles the port: none of these scans takes the hour that -t allows.
  const rejected = (first: number, ...replies: string[]) =>
    replies.map((reply, at) => rule(`${first + at}`, `REJECT --reject-with ${reply}`)).join('');
  prints('a port that a firewall rejects is closed at once if it sends an RST or "port unreachable"',
    { setup: rejected(80, 'tcp-reset', 'icmp-port-unreachable'), args: '-p 80-81 -t 3600', lines: lines(80, 81),  });
  prints('a port that a firewall rejects is filtered at once if it sends any other ICMP error', {
    setup: rejected(80, 'icmp-host-prohibited', 'icmp-net-unreachable', 'icmp-proto-unreachable'),
    args: '-p 80-82 -t 3600', lines: lines(80, 82, {}, 'filtered'),
  });
  prints('an IPv6 port that a firewall prohibits is filtered at once', {
    setup: rule('80', 'REJECT --reject-with icmp6-adm-prohibited', 'ip6tables'), address: TARGET_IPV6,
    args: '-p 80 -t 3600', lines: ['80 is filtered'],
  });
  prints('a port on an address that no machine has is filtered',
    { setup: QUICK_ARP, address: ABSENT, args: '-p 80 -t 3600', lines: ['80 is filtered'],  });
  const GIVES_UP = 'echo 1 > /proc/sys/net/ipv4/tcp_syn_retries\n'; // after two SYNs, and 2 or 3 s
  prints('a port on which the system gives up before the timeout is filtered',
    { setup: GIVES_UP + rule('80', 'DROP'), args: '-p 80 -t 3600', lines: ['80 is filtered'],  });
  prints('a port for which connect() fails at once, as a local rule wants (EACCES, EPERM), is silent', {
    setup: 'ip rule add ipproto tcp dport 80 prohibit\n', args: '-p 80-82 -t 3600', needs: needsBoth,
    scanner: scanInjected('connect', 'error=EPERM:when=2+3'), // port 81, and again in the second round
    lines: ['80 is filtered', '81 is filtered', '82 is closed'],
  });
  prints('a port for which connect() fails at once with EHOSTUNREACH is silent, and is probed again',
    { args: '-p 80-81', needs: needsBoth, scanner: scanInjected('connect', 'error=EHOSTUNREACH:when=1'),
      lines: lines(80, 81) });

  prints('ports in lists and ranges are probed in the order given, each once', {
    setup: listenAt([6, 9]), args: '-p -2,9,7,5-8,6,7,65534-', scanner: scanWith('= 4096', '= 1'), isOrdered: true,
    lines: [...lines(1, 2), '9 is open', '7 is closed', '5 is closed', '6 is open', '8 is closed',
      ...lines(65534, 65535)],
  });

  prints('a port that replies after the timeout is filtered',
    { setup: dropFirst('80'), args: '-p 80 -t 0.2', lines: ['80 is filtered'],  });
  prints('a port has as long to reply as -t says', { // the third SYN is answered, after 2 or 3 s
    setup: listenAt([80]) + dropFirst('80', 2), args: '-p 80 -t 5', lines: ['80 is open'],
  });
  prints('a port whose first SYN is lost by default has time to reply to the second',
    { setup: listenAt([80]) + dropFirst('80'), args: '-p 80', lines: ['80 is open'],  });

  test('a reply counts if it arrived in time, even if the scanner was suspended', needsNetwork, async (t) => {
    const scanner = start(t, inNetwork(dropFirst('80'), scanTarget('-p', '80')));
    const signal = (name: NodeJS.Signals) => process.kill(-(scanner.process.pid ?? NaN), name);
    while (probes(scanner) === 0) await setTimeout(10);
    signal('SIGSTOP');
    while (probes(scanner) > 0) await setTimeout(10); // the reply to the second SYN has arrived, after a second
    await setTimeout(2500); // time is up
    signal('SIGCONT');
    assert.equal((await scanner.ended).stdout, results(TARGET, '80 is closed'));
  });

  test('a result is printed at once, even if ports before it are silent', needsNetwork, async (t) => {
    const setup = listenAt([85]) + rule('80:84', 'DROP');
    const scanner = start(t, inNetwork(setup, scanTarget('-p', '80-86', '-t', '3600')));
    await scanner.printed(/TCP port 86 is closed\n/);
    scanner.process.kill('SIGKILL');
    assert.deepEqual((await scanner.ended).stdout, results(TARGET, '85 is open', '86 is closed'));
  });

  prints('--open prints only open ports', {
    setup: listenAt([22, 443]) + rule('23', 'DROP'), args: '-p 20-450 -t .5 --open',
    lines: ['22 is open', '443 is open'],
  });
  prints('--open prints no port if none is open, and the status is 1', { args: '-p 20-450 --open', lines: [] });

  // The rounds. With a timeout of 0.2 s, a round sends one SYN to each silent port.
  prints('silent ports are not probed again if no port has replied',
    { setup: dropFirst('80:81'), args: '-p 80-81 -t 0.2', lines: lines(80, 81, {}, 'filtered'),  });
  prints('silent ports are probed again until a round brings no reply', {
    setup: dropFirst('2') + dropFirst('3', 2) + dropFirst('4', 4), args: '-p 1-4 -t 0.2', isOrdered: true,
    lines: lines(1, 4, { 4: 'filtered' }),
  });
  const rejectOnce = dropFirst('83', 1, 'REJECT --reject-with icmp-host-prohibited');
  prints('a port with an ICMP error is probed again, as a silent one is',
    { setup: rejectOnce, args: '-p 82-83', lines: lines(82, 83),  });
  prints('silent ports are probed in 100 rounds at most', {
    setup: [1, 2, 3].map((count) => dropFirst(`${count + 1}`, count)).join(''),
    scanner: scanWith('round <= 100', 'round <= 3'), args: '-p 1-4 -t 0.2', lines: lines(1, 4, { 4: 'filtered' }),
  });
  const IN_FLIGHT: [rule: string, before: string, after: string, first: number, later: number][] = [
    ['the limit of the first round', 'inFlight = 4096', 'inFlight = 40', 40, 40], // a later round is never faster
    ['the limit of later rounds', 'Math.max(1024, ', 'Math.max(20, ', 80, 20],
    ['an eighth of the silent ports in later rounds', 'Math.max(1024, ', 'Math.max(1, ', 80, 10],
  ];
  for (const [what, before, after, first, later] of IN_FLIGHT) {
    test(`at most this many probes are in flight: ${what}`, needsNetwork, async (t) => {
      const scanner = scanWith(before, after)('-H', TARGET, '-p', '1-81', '-t', '1', '--open');
      const { stdout } = await run(t, inNetwork(rule('2:65535', 'DROP'), counting(scanner)));
      const counts = stdout.split('\n').map(Number);
      const steady = counts.filter((count, at) => count === counts[at + 1] && count === counts[at + 2]);
      assert.equal(Math.max(...steady), first);
      assert.equal(Math.max(...steady.slice(steady.lastIndexOf(first) + (first > later ? 1 : 0))), later);
    });
  }

  prints('every result is right if file descriptors run out', {
    setup: `${listenAt([1, 300, 1500])}${rule('2', 'DROP')}${rule('1000', 'DROP')}ulimit -n 48\n`,
    args: '-p 1-1500 -t 0.5',
    lines: lines(1, 1500, { 1: 'open', 2: 'filtered', 300: 'open', 1000: 'filtered', 1500: 'open' }),
  });
  for (const code of ['ENFILE', 'ENOBUFS', 'ENOMEM']) {
    prints(`a port for which the system has no socket (${code}) is probed later`, {
      args: '-p 80-82', scanner: scanInjected('socket', `error=${code}:when=2`),
      lines: lines(80, 82), needs: needsBoth,
    });
  }
  const NO_SOCKET = 'the system has no socket for a probe (see "ulimit -n")';
  fails('if there is no file descriptor at all, the scan ends with status 2 and says so', {
    commandLine: scanInjected('socket', 'error=EMFILE')('-H', '127.0.0.1', '-p', '1-9'), address: '127.0.0.1',
    error: NO_SOCKET, needs: needsStrace,
  });
  fails('a local error ends the scan at once, even if a port is silent', {
    commandLine: inNetwork(rule('80', 'DROP'),
      scanInjected('connect', 'error=EADDRNOTAVAIL:when=2')('-H', TARGET, '-p', '80-81', '-t', '3600')),
    address: TARGET, error: `connect EADDRNOTAVAIL ${TARGET}:81 - Local (0.0.0.0:0)`, needs: needsBoth,
  });
  fails('a network to which there is no route ends the scan with one error, and status 2', {
    commandLine: offline(scan('-H', '192.0.2.1', '-p', '80-5000')), address: '192.0.2.1',
    error: 'connect ENETUNREACH 192.0.2.1:80 - Local (0.0.0.0:0)', needs: needsOffline,
  });
  fails('a link-local address without its zone ends the scan with status 2', {
    commandLine: offline(scan('-H', 'fe80::1', '-p', '80')), address: 'fe80::1',
    error: 'connect EINVAL fe80::1:80 - Local (:::0)', needs: needsOffline,
  });

  for (const [what, stderr] of [['follows the results', 'same pipe'], ['is reported once', 'file']] as const) {
    test(`an error shared by many probes while stdout is blocked ${what}`, needsOffline, async (t) => {
      const failed = join(scratch(t), 'failed');
      const mark = `else { require('node:fs').writeFileSync('${failed}', ''); reject(error); }`;
      const scanner = scanWith('else reject(error);', mark)('-H', '192.0.2.1', '-p', '1-5000');
      const { program, read, leave } = intoPipe(t, offline(scanner), stderr);
      while (!existsSync(failed)) await setTimeout(10);
      const output = stderr === 'file' ? await leave() : (await read()).replace(results('192.0.2.1'), '');
      assert.match(output, /^portscanner\.ts: connect ENETUNREACH 192\.0\.2\.1:1 - Local \(.*\)\n$/);
      assert.equal(program.exitCode, 2);
    });
  }

  const MISTAKES: [what: string, before: string, after: string, message: string][] = [
    ['the code that probes', 'socket.connect(port', 'socket.conect(port', 'socket.conect is not a function'],
    ['a callback', 'socket.localPort', 'socket.localPort()', 'socket.localPort is not a function'],
  ];
  for (const [what, before, after, message] of MISTAKES) {
    test(`a bug in ${what} is shown with its location, and the status is 2`, needsNetwork, async (t) => {
      const scanner = edited('portscanner.ts', before, after, '-H', TARGET, '-p', '80-81', '-t', '3600');
      const { status, stderr } = await run(t, inNetwork(listenAt([81]) + rule('80', 'DROP'), scanner));
      assert.match(`${status} ${stderr}`, new RegExp(`^2 TypeError: ${message}\n( +at .*\n)+$`));
      assert.match(stderr, /portscanner\.js:\d+:\d+/);
    });
  }

  /** A command line on a terminal of its own, which is both its stdout and its stderr unless they are redirected. */
  const onTerminal = (commandLine: string[], redirection = '') =>
    ['script', '-qec', `${commandLine.map((word) => `'${word}'`).join(' ')} ${redirection}`, '/dev/null'];
  const needsTerminal = { ...LIMIT, skip: noNetwork() || cannotRun('script', '--version') };

  test('on a terminal, a line shows how many ports have replied, until the scan ends', needsTerminal, async (t) => {
    const { stdout } = await run(t, inNetwork(rule('82', 'DROP'), onTerminal(scanTarget('-p', '80-83', '-t', '0.8'))));
    const order = ['80 is closed', '81 is closed', '83 is closed', '82 is filtered'];
    const shown = results(TARGET, ...order).replaceAll('\n', '\r\n');
    assert.match(stdout, /(\x1b\[K3\/4\r){9}/); // ten times a second, in two rounds of 0.8 s
    assert.equal(stdout.replace(/\x1b\[K[0-3]\/4\r/g, ''), `${shown}\x1b[K`); // which erases the line
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

  const needsHosts = { ...LIMIT, skip: noOffline() || noMountedHosts() };
  test('a name that has only IPv6 addresses ends the scan with status 2', needsHosts, async (t) => {
    const hosts = join(scratch(t), 'hosts');
    writeFileSync(hosts, '2001:db8::1 six.test\n');
    const scanner = ['sh', '-c', 'mount --bind "$0" /etc/hosts && exec "$@"', hosts, ...scan('-H', 'six.test', '-p80')];
    const { status, stdout, stderr } = await run(t, offline(scanner));
    assert.match(stderr, /^portscanner\.ts: getaddrinfo E\w+ six\.test\n$/);
    assert.deepEqual([status, stdout], [2, '']);
  });

  test('closing stdout ends the scan at once and silently, with status 2', needsNetwork, async (t) => {
    const setup = rule('10000:20000', 'DROP'); // none of them can reply within the hour
    const head = ['sh', '-c', '{ "$@"; echo "$?" > /run/status; } | head -1; exit "$(cat /run/status)"', 'sh'];
    assert.deepEqual(await run(t, inNetwork(setup, [...head, ...scanTarget('-p', '1-20000', '-t', '3600')])), {
      status: 2, stdout: results(TARGET), stderr: '',
    });
  });

  for (const args of ['-H127.0.0.1 -p=1-3 -t.5', '--host=127.0.0.1 -p1,2-3', '-H a -H 127.0.0.1 -p 9 -p 1-3']) {
    test(`values can be attached, and the last one counts: ${args}`, LIMIT, async (t) => {
      assert.equal((await run(t, scan(...args.split(' ')))).stdout, results('127.0.0.1', ...lines(1, 3)));
    });
  }
});
