import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import type { Socket } from 'node:net';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import { version } from '../package.json';
import {
  ABSENT, ban, dropFirst, inNetwork, limit, listenAt, lossy, noLoopback, noNetwork, noOffline, offline, outage,
  QUICK_ARP, rule, selfConnecting, TARGET, TARGET_IPV6,
} from './network';
import { accepted, closedPort, listen, receiveAll } from './peers';
import {
  cannotRun, edited, LIMIT, node, noFullDisk, noIPv6, noMountedHosts, noStrace, onFullDisk, PATIENCE, run, type Running,
  scratch, start, startWithSlowReader, strace,
} from './scripts';

const scan = (...args: string[]) => node('portscanner.ts', ...args);
const scanTarget = (...args: string[]) => scan('-H', TARGET, ...args);
const USAGE = 'Usage: npx ts-node portscanner.ts -H <host> -p <ports> [-t <seconds>] [--open]\n';

/** What a scan of the address prints, given lines such as '80 is open'. */
function results(address: string, ...lines: string[]): string {
  const line = (text: string) => `${text.endsWith('open') ? '[OK]' : '[FAILED]'} TCP port ${text}\n`;
  return `Connecting to ${address}...\n${lines.map(line).join('')}`;
}

/** The lines of the ports from first to last, which are closed (or what is usual), except for some. */
const lines = (first: number, last: number, others: Record<number, string> = {}, usual = 'closed') =>
  Array.from({ length: last - first + 1 }, (_, at) => `${first + at} is ${others[first + at] ?? usual}`);

/** The scanner with another value of a constant, so that fewer ports or rounds show the same. */
const scanWith = (before: string, after: string) => (...args: string[]) =>
  edited('portscanner.ts', `${before};`, `${after};`, ...args);

/** The scanner with a fault or a delay in system calls. */
const scanInjected = (call: string, injected: string) => (...args: string[]) => strace(call, injected, scan(...args));

/** How many probes of a scanner in a network of its own wait for a reply to their SYN. */
const probes = ({ process: { pid } }: Running) => readFileSync(`/proc/${pid}/net/tcp`, 'utf8').split(' 02 ').length - 1;

const needsNetwork = { ...LIMIT, skip: noNetwork() };
const needsOffline = { ...LIMIT, skip: noOffline() };
const needsStrace = { ...LIMIT, skip: noStrace() };
const needsBoth = { ...LIMIT, skip: noNetwork() || noStrace() };

/** A test: a scan of the target, in the network that the setup makes, prints those lines and no error. */
function prints(name: string, setup: string, args: string, expected: string[], scanner = scan, needs = needsNetwork,
  address = TARGET) {
  test(name, needs, async (t) => {
    const { status, stdout, stderr } = await run(t, inNetwork(setup, scanner('-H', address, ...args.split(' '))));
    assert.equal(stdout, results(address, ...expected));
    assert.deepEqual([status, stderr], [expected.some((line) => line.endsWith('open')) ? 0 : 1, '']);
  });
}

/** A test: the scan ends with status 2 and an error, after it has printed that it connects to the address, if any. */
function fails(name: string, needs: object, commandLine: string[], address: string, error: string) {
  test(name, needs, async (t) => {
    assert.deepEqual(await run(t, commandLine), {
      status: 2, stdout: address && results(address), stderr: error && `portscanner.ts: ${error}\n`,
    });
  });
}

describe('portscanner.ts', { concurrency: 8 }, () => {
  // From port 32768 on, the system also chooses the scanner's own ports.
  prints('a scan of 10,000 ports finds just those at which a server listens',
    listenAt([28_001, 33_333, 38_000], 'here'), '-p 28001-38000 --open',
    ['28001 is open', '33333 is open', '38000 is open'], scan, needsNetwork, '127.0.0.1');

  // At full speed, six rounds would leave some of these ports without an answer.
  prints('a host that takes 20 SYN a second is asked more slowly, and every answer is right',
    listenAt([200]) + limit('INPUT', 'SYN,ACK SYN', 20, 20), '-p 1-400 -t 1.5', lines(1, 400, { 200: 'open' }),
    scanWith('MOST_ROUNDS = 20', 'MOST_ROUNDS = 6'), { ...needsNetwork, ...PATIENCE });

  const NETWORKS: [network: string, setup: string, timeout: number][] = [
    ['whose host sends 100 RST, and then at most 200 a second', limit('OUTPUT', 'RST RST', 200), 3],
    ['whose host takes 100 SYN, and then at most 200 a second', limit('INPUT', 'SYN,ACK SYN', 200), 3],
    ['that loses 5 % of the packets each way', lossy(0.05), 1.5], // with two SYNs, some ports stay silent
    ['whose firewall bans a source for 3 s that sends 200 SYN, and then more than 60 a second', ban(60, 200), 3],
  ];
  for (const [network, setup, timeout] of NETWORKS) {
    prints(`every answer is right in a network ${network}`, listenAt([1, 300, 500]) + setup, `-p 1-600 -t ${timeout}`,
      lines(1, 600, { 1: 'open', 300: 'open', 500: 'open' }));
  }
  prints('every answer is right if the host is silent for two seconds in the middle of a scan',
    listenAt([1, 1500, 2000]) + outage(1000, 2), '-p 1-2000 -t 1.5',
    lines(1, 2000, { 1: 'open', 1500: 'open', 2000: 'open' }));

  test('a port at which nothing listens is closed, and the status is 1', LIMIT, async (t) => {
    const port = await closedPort();
    assert.deepEqual(await run(t, scan('--host', 'localhost', '--port', `${port}`)), {
      status: 1, stderr: '', stdout: results('127.0.0.1', `${port} is closed`),
    });
  });

  test('an open port of an IPv6 address is open', { ...LIMIT, skip: noIPv6() }, async (t) => {
    const port = await listen(t, () => {}, '::1');
    assert.equal((await run(t, scan('-H', '::1', '-p', `${port}`))).stdout, results('::1', `${port} is open`));
  });

  test('the scanned server sees the connection close in order', LIMIT, async (t) => {
    const { port, connection } = await accepted(t);
    start(t, scan('-H', '127.0.0.1', '-p', `${port}`));
    assert.equal((await receiveAll(await connection)).length, 0); // it would reject at a reset
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
  prints('a port that drops packets is filtered', rule('80', 'DROP'), '-p 80 -t 0.5', ['80 is filtered']);

  // A reply settles the port: none of these scans takes the hour that -t allows.
  const rejected = (first: number, ...replies: string[]) =>
    replies.map((reply, at) => rule(`${first + at}`, `REJECT --reject-with ${reply}`)).join('');
  prints('a port that a firewall rejects is closed at once if it sends an RST or "port unreachable"',
    rejected(80, 'tcp-reset', 'icmp-port-unreachable'), '-p 80-81 -t 3600', lines(80, 81));
  prints('a port that a firewall rejects is filtered at once if it sends any other ICMP error',
    rejected(80, 'icmp-host-prohibited', 'icmp-net-unreachable', 'icmp-proto-unreachable'), '-p 80-82 -t 3600',
    lines(80, 82, {}, 'filtered'));
  prints('an IPv6 port that a firewall prohibits is filtered at once',
    rule('80', 'REJECT --reject-with icmp6-adm-prohibited', 'ip6tables'), '-p 80 -t 3600', ['80 is filtered'], scan,
    needsNetwork, TARGET_IPV6);
  prints('a port of an address that no machine has is filtered', QUICK_ARP, '-p 80 -t 3600', ['80 is filtered'], scan,
    needsNetwork, ABSENT);
  const GIVES_UP = 'echo 1 > /proc/sys/net/ipv4/tcp_syn_retries\n'; // after two SYNs, and 2 or 3 s
  prints('a port on which the system gives up before the timeout is filtered', GIVES_UP + rule('80', 'DROP'),
    '-p 80 -t 3600', ['80 is filtered']);
  prints('a port that this machine prohibits (EACCES, EPERM) is filtered, and the scan goes on',
    'ip rule add ipproto tcp dport 80 prohibit\n', '-p 80-82 -t 3600',
    ['80 is filtered', '81 is filtered', '82 is closed'], scanInjected('connect', 'error=EPERM:when=2'), needsBoth);
  prints('a port for which connect() fails at once with EHOSTUNREACH is filtered, and the scan goes on', '',
    '-p 80-81', ['80 is filtered', '81 is closed'], scanInjected('connect', 'error=EHOSTUNREACH:when=1'), needsBoth);

  prints('the ports of lists and ranges are printed in the order given, each once', listenAt([6, 9]),
    '-p -2,9,7,5-8,6,7,65534-',
    [...lines(1, 2), '9 is open', '7 is closed', '5 is closed', '6 is open', '8 is closed', ...lines(65534, 65535)]);

  prints('a port that answers after the timeout is filtered', dropFirst('80'), '-p 80 -t 0.2', ['80 is filtered']);
  prints('a port has as long to answer as -t says',
    listenAt([80]) + dropFirst('80', 2), '-p 80 -t 5', ['80 is open']); // the third SYN is answered, after 2 or 3 s
  prints('a port whose first SYN is lost has by default the time to answer the second',
    listenAt([80]) + dropFirst('80'), '-p 80', ['80 is open']);

  test('an answer counts if it arrived in time, even if the scanner was suspended until later', needsNetwork,
    async (t) => {
      const scanner = start(t, inNetwork(dropFirst('80'), scanTarget('-p', '80', '-t', '1.5')));
      const signal = (name: NodeJS.Signals) => process.kill(-(scanner.process.pid ?? NaN), name);
      while (probes(scanner) === 0) await setTimeout(10);
      signal('SIGSTOP');
      await setTimeout(2500); // the port answers after a second, and its time is over half a second later
      signal('SIGCONT');
      assert.equal((await scanner.ended).stdout, results(TARGET, '80 is closed'));
    });

  prints('ports are printed in the order given, whichever answers first', rule('80', 'DROP'), '-p 80-81 -t 0.5',
    ['80 is filtered', '81 is closed']);
  test('a port is printed as soon as it and those before it have answered', needsNetwork, async (t) => {
    const scanner = start(t, inNetwork(rule('82', 'DROP'), scanTarget('-p', '80-83', '-t', '3600')));
    await scanner.printed(/TCP port 81 is closed\n/);
    scanner.process.kill('SIGKILL');
    assert.equal((await scanner.ended).stdout, results(TARGET, '80 is closed', '81 is closed'));
  });

  prints('--open prints only open ports', listenAt([22, 443]) + rule('23', 'DROP'), '-p 20-450 -t .5 --open',
    ['22 is open', '443 is open']);
  prints('--open prints no port if none is open, and the status is 1', '', '-p 20-450 --open', []);

  // With 1.2 s and more, the first round takes two SYNs of a silent port; the third shows that there is another round.
  const scanBy50 = scanWith('MOST_IN_FLIGHT = 4096', 'MOST_IN_FLIGHT = 50');
  prints('99 silent ports are asked once if no packet seems to be lost', // some replies come first, and some last
    dropFirst('1:99', 2), '-p 100-120,1-99,121-140 -t 1.2',
    [...lines(100, 120), ...lines(1, 99, {}, 'filtered'), ...lines(121, 140)], scanBy50);
  prints('100 silent ports get a second look', dropFirst('1:100', 2), '-p 1-101 -t 1.2', lines(1, 101));
  prints('all silent ports are asked again if one of those of the second look answers', // port 1 answers only after it
    dropFirst('1:100', 2) + dropFirst('1', 2), '-p 1-101 -t 1.2', lines(1, 101), scanBy50); // the look is at 50 ports
  prints('the other ports are not asked again if the second look brings no answer', // port 2 would answer now
    dropFirst('2', 2) + rule('1', 'DROP') + rule('3:100', 'DROP'), '-p 1-101 -t 1.2',
    lines(1, 101, { 101: 'closed' }, 'filtered'), scanBy50);
  prints('100 silent ports of a host that answers nothing are asked once',
    dropFirst('1:100', 2), '-p 1-100 -t 1.2', lines(1, 100, {}, 'filtered'));
  prints('silent ports of a host that answers nothing are asked once even if -t is below 1.2',
    dropFirst('80:81'), '-p 80-81 -t 0.2', lines(80, 81, {}, 'filtered'));
  prints('silent ports are asked again if -t is below 1.2, and another port answers',
    listenAt([80]) + dropFirst('80', 2), '-p 80-81 -t 1.1', ['80 is open', '81 is closed']);
  prints('silent ports are asked again if a port answers late',
    dropFirst('81') + dropFirst('82', 2), '-p 60-82 -t 1.5', lines(60, 82));
  const rejectTwo = dropFirst('83', 2, 'REJECT --reject-with icmp-host-prohibited');
  prints('ports that the system or the network gave up (ETIMEDOUT, EHOSTUNREACH) are asked again, too',
    GIVES_UP + dropFirst('81') + dropFirst('82', 2) + rejectTwo, '-p 60-83 -t 3600', lines(60, 83));
  prints('silent ports are asked again until two rounds in a row bring no answer',
    dropFirst('2', 2) + dropFirst('3', 4) + dropFirst('4', 7), '-p 1-4 -t 0.2', lines(1, 4, { 4: 'filtered' }));
  prints('silent ports are asked again at most 20 times',
    Array.from({ length: 21 }, (_, at) => dropFirst(`${at + 1}`, at + 1)).join(''), '-p 1-22 -t 0.2',
    lines(1, 22, { 21: 'filtered' }));

  prints('every answer is right if file descriptors run out',
    `${listenAt([1, 300, 1500])}${rule('2', 'DROP')}${rule('1000', 'DROP')}ulimit -n 48\n`, '-p 1-1500 -t 0.5',
    lines(1, 1500, { 1: 'open', 2: 'filtered', 300: 'open', 1000: 'filtered', 1500: 'open' }));
  prints('a port for which the system has no socket (ENOBUFS) is asked later', rule('80', 'DROP'),
    '-p 80-82 -t 1.2', lines(80, 82, { 80: 'filtered' }), scanInjected('socket', 'error=ENOBUFS:when=2'), needsBoth);
  fails('if there is no file descriptor at all, the scan ends with status 2 and says so', needsStrace,
    scanInjected('socket', 'error=EMFILE')('-H', '127.0.0.1', '-p', '1-9'), '127.0.0.1',
    'cannot open a single socket (see "ulimit -n")');
  fails('an error of this machine ends the scan at once, even if a port is silent', needsBoth,
    inNetwork(rule('80', 'DROP'),
      scanInjected('connect', 'error=EADDRNOTAVAIL:when=2')('-H', TARGET, '-p', '80-81', '-t', '3600')),
    TARGET, `cannot scan port 81 of ${TARGET} (EADDRNOTAVAIL)`);
  fails('a network to which there is no route ends the scan with status 2', needsOffline,
    offline(scan('-H', '192.0.2.1', '-p', '80-90')), '192.0.2.1', 'cannot scan port 80 of 192.0.2.1 (ENETUNREACH)');
  fails('a link-local address without its zone ends the scan with status 2', needsOffline,
    offline(scan('-H', 'fe80::1', '-p', '80')), 'fe80::1', 'cannot scan port 80 of fe80::1 (EINVAL)');

  test('what was answered before an error reaches a slow reader, and the error follows', needsStrace, async (t) => {
    const scanner = scanInjected('connect', 'error=EADDRNOTAVAIL:when=3000')('-H', '127.0.0.2', '-p', '10001-13000');
    const { printed, ended, go } = startWithSlowReader(t, scanner);
    await printed(/^Connecting/);
    await setTimeout(2000); // so that the scan reaches the error
    go();
    const { stdout } = await ended; // without the answers that were still on their way to the scanner
    assert.match(stdout, /^C.*\n(.* is \w+\n){2000,}portscanner\.ts: cannot scan port 13000 of .* \(EADDRN\w+\)\n$/);
  });

  const MISTAKES: [what: string, before: string, after: string, message: string][] = [
    ['in the code that asks', 'socket.connect(port', 'socket.conect(port', 'socket.conect is not a function'],
    ['in the code that prints', 'states.get(port)', 'states.gett(port)', 'states.gett is not a function'],
  ];
  for (const [what, before, after, message] of MISTAKES) {
    test(`an unexpected exception ${what} shows its place and has status 2`, needsNetwork, async (t) => {
      const scanner = edited('portscanner.ts', before, after, '-H', TARGET, '-p', '80-81', '-t', '3600');
      const { status, stderr } = await run(t, inNetwork(rule('80', 'DROP'), scanner));
      assert.match(`${status} ${stderr}`, new RegExp(`^2 TypeError: ${message}\n +at .*portscanner\\.js:\\d+:\\d+`));
    });
  }

  fails('a scan that ends before all answers are known has status 2', LIMIT,
    edited('portscanner.ts', 'socket.connect(port, address);', '', '-H', '127.0.0.1', '-p', '1'), '127.0.0.1', '');

  /** A command line on a terminal of its own, which is both its stdout and its stderr unless they are redirected. */
  const onTerminal = (commandLine: string[], redirection = '') =>
    ['script', '-qec', `${commandLine.map((word) => `'${word}'`).join(' ')} ${redirection}`, '/dev/null'];
  const needsTerminal = { ...LIMIT, skip: noNetwork() || cannotRun('script', '--version') };

  test('on a terminal a line shows how many answers are known, until the scan ends', needsTerminal, async (t) => {
    const setup = rule('82', 'DROP'); // which is asked in three rounds
    const { stdout } = await run(t, inNetwork(setup, onTerminal(scanTarget('-p', '80-83', '-t', '0.8'))));
    const shown = results(TARGET, ...lines(80, 83, { 82: 'filtered' })).replaceAll('\n', '\r\n');
    assert.match(stdout, /(\x1b\[K3 of 4 ports\r){9}/); // ten times a second, in 2.4 s
    assert.equal(stdout.replace(/\x1b\[K[0-3] of 4 ports\r/g, ''), `${shown}\x1b[K`); // which erases the line
  });

  test('-p- scans 65,535 ports, at most 4,096 at a time', needsTerminal, async (t) => {
    const scanner = start(t, inNetwork(rule('0:65535', 'DROP'), onTerminal(scanTarget('-p-', '-t', '3600'))));
    await scanner.printed(/ of 65535 ports/);
    while (probes(scanner) < 4096) await setTimeout(100);
    await setTimeout(500);
    assert.equal(probes(scanner), 4096);
    scanner.process.kill('SIGKILL');
  });

  const PROGRESS: [what: string, ports: string, redirection: string, progress: boolean][] = [
    ['shows progress if stdout is a file', '80-81', '> /run/file', true],
    ['shows no progress if stdout is a pipe', '80-81', '| cat', false],
    ['shows no progress if stderr is a file', '80-81', '2> /run/file; cat /run/file', false],
    ['of one port shows no progress', '80', '', false],
  ];
  for (const [what, ports, redirection, progress] of PROGRESS) {
    test(`a scan ${what}`, needsTerminal, async (t) => {
      const scanner = onTerminal(scanTarget('-p', ports, '-t', '0.5'), redirection);
      const { stdout } = await run(t, inNetwork(rule('80', 'DROP'), scanner));
      assert.equal(/\d of \d ports/.test(stdout), progress, stdout);
      assert.equal(stdout.includes('TCP port 80 is filtered'), !redirection.startsWith('>'), stdout);
    });
  }

  const LONG = `${'x'.repeat(64)}.test`; // a label of 64 characters is refused before a name server is asked
  fails('a host without an address ends the scan with status 2', LIMIT, scan('-H', LONG, '-p', '80'), '',
    `cannot find an IPv4 address of ${LONG} (ENOTFOUND)`);

  const needsHosts = { ...LIMIT, skip: noOffline() || noMountedHosts() };
  test('a name that has only IPv6 addresses ends the scan with status 2', needsHosts, async (t) => {
    const hosts = join(scratch(t), 'hosts');
    writeFileSync(hosts, '2001:db8::1 six.test\n');
    const scanner = ['sh', '-c', 'mount --bind "$0" /etc/hosts && exec "$@"', hosts, ...scan('-H', 'six.test', '-p80')];
    const { status, stdout, stderr } = await run(t, offline(scanner));
    assert.match(stderr, /^portscanner\.ts: cannot find an IPv4 address of six\.test \(E\w+\)\n$/);
    assert.deepEqual([status, stdout], [2, '']);
  });

  test('closing stdout ends the scan at once and silently, with status 2', needsNetwork, async (t) => {
    const setup = rule('10000:20000', 'DROP'); // none of them can answer within the hour
    const head = ['sh', '-c', '{ "$@"; echo "$?" > /run/status; } | head -1; exit "$(cat /run/status)"', 'sh'];
    assert.deepEqual(await run(t, inNetwork(setup, [...head, ...scanTarget('-p', '1-20000', '-t', '3600')])), {
      status: 2, stdout: results(TARGET), stderr: '',
    });
  });

  fails('a full disk ends the scan with status 2', { ...LIMIT, skip: noFullDisk() },
    onFullDisk(scan('-H', '127.0.0.1', '-p', '1')), '', 'cannot print the answers (ENOSPC)');

  test('-h and --help print the usage', LIMIT, async (t) => {
    const { stdout } = await run(t, scan('-h'));
    for (const listed of [USAGE, '-H, --host', '-p, --port', '-t, --timeout', '[default: 3]', '--open', '--version']) {
      assert.ok(stdout.includes(listed), listed);
    }
    assert.deepEqual(await run(t, scan('--help')), { status: 0, stdout, stderr: '' });
  });

  test('--version prints the version of the package', LIMIT, async (t) => {
    assert.deepEqual(await run(t, scan('--version')), { status: 0, stdout: `${version}\n`, stderr: '' });
  });
  for (const args of ['-H127.0.0.1 -p=1-3 -t.5', '--host=127.0.0.1 -p1,2-3 --timeout=.5']) {
    test(`values can be attached to their options: ${args}`, LIMIT, async (t) => {
      assert.equal((await run(t, scan(...args.split(' ')))).stdout, results('127.0.0.1', ...lines(1, 3)));
    });
  }

  const PORT = ['-H', 'localhost', '-p'];
  const BOTH = [...PORT, '80'];
  const noHost = (host: string, quoted: string): [string[], string] =>
    [['-H', host, '-p', '80'], `-H takes one name or IP address, without brackets or a port, not ${quoted}`];
  const noPort = (ports: string, part = ports): [string[], string] =>
    [[...PORT, ports], `${JSON.stringify(part)} is neither a port from 1 to 65535 nor a range such as 8000-8100`];
  const noTimeout = (seconds: string): [string[], string] =>
    [[...BOTH, '-t', seconds], `-t takes seconds above 0 and up to 3600, such as 0.5, not ${JSON.stringify(seconds)}`];
  const REFUSED: Record<string, [args: string[], message: string][]> = {
    'a scan without a host or without ports': [
      [['-p', '80'], 'both -H and -p are needed'],
      [['-H', 'localhost'], 'both -H and -p are needed'],
    ],
    'what is not one host': [
      [['-H', 'a', ...BOTH], '-H takes one name or IP address, without brackets or a port, not ["a","localhost"]'],
      noHost('localhost:80', '"localhost:80"'), noHost('8080', '"8080"'), noHost('a\x9b', '"a\\u{9b}"'),
    ],
    'what is not one list of ports': [
      [[...BOTH, '-p', '81'], '-p takes one list, such as 22,80, not ["80","81"]'],
      ...['0', '65536', '20-10', '1-2-3'].map((ports) => noPort(ports)), noPort('80,,81', ''),
    ],
    'what is not a number of seconds': [
      [[...BOTH, '-t', '1', '-t', '2'], '-t takes seconds above 0 and up to 3600, such as 0.5, not ["1","2"]'],
      noTimeout('0'), noTimeout('3600.1'), noTimeout('1e1'),
    ],
    'what is not an option': [
      [['-host', 'localhost', '-p', '80'], 'Unknown arguments: o, s'],
      [[...BOTH, '--open=xyz'], 'Argument unexpected for: open'],
      [[...BOTH, '--no-open'], 'Unknown argument: no-open'],
      [[...BOTH, '--open.x'], 'Unknown argument: open.x'],
      [['help'], 'unexpected argument "help"; separate ports with commas'],
    ],
  };
  for (const [what, refusals] of Object.entries(REFUSED)) {
    test(`the scanner refuses ${what}`, LIMIT, async (t) => {
      for (const [args, message] of refusals) {
        assert.deepEqual(await run(t, scan(...args), { LC_ALL: 'de_DE.UTF-8' }), {
          status: 2, stdout: '', stderr: `portscanner.ts: ${message}\n${USAGE}`,
        }, args.join(' '));
      }
    });
  }
});
