import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { createWriteStream, existsSync, readFileSync, writeFileSync } from 'node:fs';
import type { Socket } from 'node:net';
import { join } from 'node:path';
import { describe, test, type TestContext } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import { version } from '../package.json';
import {
  inNetwork, limit, listenAt, lossy, NOBODY, noNetwork, offline, QUICK_ARP, rule, selfConnecting, TARGET, TARGET_IPV6,
} from './network';
import { accepted, closedPort, listen, preload, receiveAll } from './peers';
import {
  cannotRun, LIMIT, node, noFullDisk, noIPv6, noStrace, onFullDisk, reported, run, scratch, start, strace, unshare,
} from './scripts';

const scan = (...args: string[]) => node('portscanner.ts', ...args);
const scanTarget = (...args: string[]) => scan('-H', TARGET, ...args);
const USAGE = 'Usage: npx ts-node portscanner.ts -H <host> -p <ports> [-t <seconds>] [--open]\n';

/** What a scan of address prints, given lines such as '80 is open'. */
function results(address: string, ...lines: string[]): string {
  const line = (text: string) => `${text.endsWith('open') ? '[OK]' : '[FAILED]'} TCP port ${text}\n`;
  return `Connecting to ${address}...\n${lines.map(line).join('')}`;
}

/** The whole numbers from first to last. */
const range = (first: number, last: number) => Array.from({ length: last - first + 1 }, (_, index) => first + index);

const needsNetwork = { ...LIMIT, skip: noNetwork() };
const needsStrace = { ...LIMIT, skip: noStrace() };
const needsBoth = { ...LIMIT, skip: needsNetwork.skip || needsStrace.skip };

describe('portscanner.ts', { concurrency: 4 }, () => {
  test('a port at which someone listens is open', LIMIT, async (t) => {
    const port = await listen(t, () => {});
    assert.deepEqual(await run(t, scan('-H', '127.0.0.1', '-p', `${port}`)), {
      status: 0, stderr: '', stdout: results('127.0.0.1', `${port} is open`),
    });
  });

  test('a port at which nobody listens is closed', LIMIT, async (t) => {
    const port = await closedPort();
    assert.deepEqual(await run(t, scan('--host', '127.0.0.1', '--port', `${port}`)), {
      status: 1, stderr: '', stdout: results('127.0.0.1', `${port} is closed`),
    });
  });

  test('an open port on an IPv6 address is open', { ...LIMIT, skip: noIPv6() }, async (t) => {
    const port = await listen(t, () => {}, '::1');
    assert.deepEqual(await run(t, scan('-H', '::1', '-p', `${port}`)), {
      status: 0, stderr: '', stdout: results('::1', `${port} is open`),
    });
  });

  test('the scanned server sees the connection close in order', LIMIT, async (t) => {
    const { port, connection } = await accepted(t);
    start(t, scan('-H', '127.0.0.1', '-p', `${port}`));
    assert.equal((await receiveAll(await connection)).length, 0); // it would reject at a reset
  });

  const FIREWALLS: [target: string, answer: string][] = [
    ['DROP', 'filtered'],
    ['REJECT --reject-with tcp-reset', 'closed'],
    ['REJECT --reject-with icmp-admin-prohibited', 'filtered'],
    ['REJECT --reject-with icmp-host-prohibited', 'filtered'],
    ['REJECT --reject-with icmp-host-unreachable', 'filtered'],
    ['REJECT --reject-with icmp-net-prohibited', 'filtered'],
    ['REJECT --reject-with icmp-net-unreachable', 'filtered'],
    ['REJECT --reject-with icmp-proto-unreachable', 'filtered'],
  ];
  for (const [target, answer] of FIREWALLS) {
    test(`a port behind the firewall rule ${target} is ${answer}`, needsNetwork, async (t) => {
      const setup = (answer === 'closed' ? listenAt([80]) : '') + rule('80', target);
      const timeout = target === 'DROP' ? '0.5' : '3600'; // what rejects answers at once
      assert.deepEqual(await run(t, inNetwork(setup, scanTarget('-p', '80', '-t', timeout))), {
        status: 1, stderr: '', stdout: results(TARGET, `80 is ${answer}`),
      });
    });
  }

  for (const reject of ['icmp6-adm-prohibited', 'icmp6-no-route', 'icmp6-addr-unreachable']) {
    const target = `REJECT --reject-with ${reject}`;
    test(`an IPv6 port behind the firewall rule ${target} is filtered`, needsNetwork, async (t) => {
      const setup = rule('80', target, 'ip6tables');
      assert.deepEqual(await run(t, inNetwork(setup, scan('-H', TARGET_IPV6, '-p', '80', '-t', '3600'))), {
        status: 1, stderr: '', stdout: results(TARGET_IPV6, '80 is filtered'),
      });
    });
  }

  test('a port of an address that nobody has is filtered', needsNetwork, async (t) => {
    assert.deepEqual(await run(t, inNetwork(QUICK_ARP, scan('-H', NOBODY, '-p', '80', '-t', '3600'))), {
      status: 1, stderr: '', stdout: results(NOBODY, '80 is filtered'),
    });
  });

  test('a port on which the system gives up before the time-out is filtered', needsNetwork, async (t) => {
    const setup = `echo 1 > /proc/sys/net/ipv4/tcp_syn_retries\n${rule('80', 'DROP')}`; // it gives up after 2 or 3 s
    assert.deepEqual(await run(t, inNetwork(setup, scanTarget('-p', '80', '-t', '3600'))), {
      status: 1, stderr: '', stdout: results(TARGET, '80 is filtered'),
    });
  });

  test('lists and ranges are scanned in the order asked, each port once', needsNetwork, async (t) => {
    const setup = listenAt([6, 9]);
    assert.deepEqual(await run(t, inNetwork(setup, scanTarget('-p', '9,7,5-8,6,7'))), {
      status: 0,
      stderr: '',
      stdout: results(TARGET, '9 is open', '7 is closed', '5 is closed', '6 is open', '8 is closed'),
    });
  });

  /** strace waits for all children of its process, even a listener of the setup: so it gets a process of its own. */
  const asChild = (commandLine: string[]) => ['sh', '-c', '"$@"; exit', 'sh', ...commandLine];

  /** A line of setup: an iptables rule of the target that drops the first SYNs to each of the ports. */
  const dropFirst = (ports: string, count = 1) =>
    `on_target iptables -A INPUT -p tcp --syn --dport ${ports} -m hashlimit --hashlimit-name syn${ports}-${count} `
    + `--hashlimit-mode dstport --hashlimit-upto 1/hour --hashlimit-burst ${count} -j DROP\n`;

  test('a port has as long to answer as -t says', needsNetwork, async (t) => {
    // The answer comes to the third SYN, after 2 or 3 s.
    const setup = listenAt([80]) + dropFirst('80', 2);
    assert.equal((await run(t, inNetwork(setup, scanTarget('-p', '80', '-t', '1.5')))).stdout,
      results(TARGET, '80 is filtered'));
  });

  test('a port whose first SYN is lost has by default the time to answer the next one', needsNetwork, async (t) => {
    const setup = listenAt([80]) + dropFirst('80');
    assert.equal((await run(t, inNetwork(setup, scanTarget('-p', '80')))).stdout, results(TARGET, '80 is open'));
  });

  test('an answer counts if it came in time, even if the scanner was busy until later', needsBoth, async (t) => {
    const file = join(scratch(t), 'output');
    writeFileSync(file, '');
    // The line of port 1 takes 2 s to be written. Meanwhile, port 2000 answers the second SYN, and its time runs out.
    const setup = listenAt([2000]) + dropFirst('2000');
    const scanner = scanTarget('-p', '1,2000', '-t', '1.5');
    const slow = strace('write', 'delay_exit=2000000:when=2', ['-P', file, ...scanner]);
    await run(t, inNetwork(setup, ['sh', '-c', '"$@" > "$0"; exit', file, ...slow]));
    assert.equal(readFileSync(file, 'utf8'), results(TARGET, '1 is closed', '2000 is open'));
  });

  test('ports are printed in the order given, whichever answers first', needsNetwork, async (t) => {
    const setup = rule('80', 'DROP');
    assert.equal((await run(t, inNetwork(setup, scanTarget('-p', '80-81', '-t', '0.5')))).stdout,
      results(TARGET, '80 is filtered', '81 is closed'));
  });

  test('a port is printed as soon as it and those before it have answered', needsNetwork, async (t) => {
    const scanner = start(t, inNetwork(rule('82', 'DROP'), scanTarget('-p', '80-83', '-t', '3600')));
    await scanner.printed(/TCP port 81 is closed\n/);
    scanner.process.kill('SIGKILL');
    assert.equal((await scanner.ended).stdout, results(TARGET, '80 is closed', '81 is closed'));
  });

  test('--open prints open ports alone', needsNetwork, async (t) => {
    const setup = listenAt([22, 443]) + rule('23', 'DROP');
    assert.deepEqual(await run(t, inNetwork(setup, scanTarget('-p', '20-450', '-t', '.5', '--open'))), {
      status: 0, stderr: '', stdout: results(TARGET, '22 is open', '443 is open'),
    });
  });

  test('--open prints no port if none is open, and the status is 1', needsNetwork, async (t) => {
    assert.deepEqual(await run(t, inNetwork('', scanTarget('-p', '20-450', '--open'))), {
      status: 1, stderr: '', stdout: results(TARGET),
    });
  });

  const needsLoopback = { ...LIMIT, skip: cannotRun(...selfConnecting(['true'])) };
  test('a port that TCP connects to itself is closed', needsLoopback, async (t) => {
    assert.deepEqual(await run(t, selfConnecting(scan('-H', 'localhost', '-p', '54321'))), {
      status: 1, stderr: '', stdout: results('127.0.0.1', '54321 is closed'),
    });
  });

  test('a scan of all ports finds just those at which someone listens', needsNetwork, async (t) => {
    const ports = [1, 22, 1024, 8080, 33333, 54321, 65535];
    const all = scan('-H', 'localhost', '-p', '1-65535', '--open');
    assert.deepEqual(await run(t, inNetwork(listenAt(ports, 'here'), all)), {
      status: 0, stderr: '', stdout: results('127.0.0.1', ...ports.map((port) => `${port} is open`)),
    });
  });

  /** A command line that has strace write the scanner's calls of connect(), or of another, to a file. */
  const traced = (file: string, scanner: string[], call = 'connect') => asChild(
    ['strace', '-f', '--seccomp-bpf', '-qq', '-o', file, '-e', `trace=${call}`, '-e', 'signal=none', ...scanner]);

  /** How many times connect() has been called for a port, by what strace has written to the file. */
  const connects = (file: string) => existsSync(file) ? readFileSync(file, 'utf8').split('sin_port').length - 1 : 0;

  /** Starts a scan without end in the network made by setup. Resolves when so many ports have been asked. */
  async function askedUpTo(t: TestContext, count: number, setup: string, ports: string): Promise<string> {
    const file = join(scratch(t), 'calls');
    start(t, inNetwork(setup, traced(file, scanTarget('-p', ports, '-t', '3600'))));
    while (connects(file) < count) await setTimeout(50);
    return file;
  }

  test('one silent port does not hold up 5,000 others', needsBoth, async (t) => {
    await askedUpTo(t, 5001, rule('1', 'DROP'), '1-5001');
  });

  test('no more than 4,096 probes are in flight', needsBoth, async (t) => {
    const file = await askedUpTo(t, 4096, rule('1:5000', 'DROP'), '1-5000');
    await setTimeout(500); // a scanner that goes on has asked more by then
    assert.equal(connects(file), 4096);
  });

  const SILENT: [what: string, timeout: string, times: string, setup: string, ports: string, count: number][] = [
    ['a host that drops everything', '0.5', 'once', rule('1:50', 'DROP'), '1-50', 50],
    ['a host that drops everything', '1.5', 'once', rule('1:50', 'DROP'), '1-50', 50],
    ['a network that loses no packet', '1.5', 'once', rule('1:50', 'DROP'), '1-100', 100],
    ['a network that loses no packet, the last ones,', '1.5', 'once', rule('51:100', 'DROP'), '1-100', 100],
    ['a network that loses no packet', '0.5', 'twice', rule('1:50', 'DROP'), '1-100', 150],
    ['a host whose closed ports answer a second later than the open one', '3', 'once',
      listenAt([100]) + dropFirst('51:99') + rule('1:50', 'DROP'), '1-100', 100],
  ];
  for (const [what, timeout, times, setup, ports, count] of SILENT) {
    test(`the silent ports of ${what} are asked ${times} if -t is ${timeout}`, needsBoth, async (t) => {
      const file = join(scratch(t), 'calls');
      await run(t, inNetwork(setup, traced(file, scanTarget('-p', ports, '-t', timeout))));
      assert.equal(connects(file), count);
    });
  }

  /** The ports from 1 to 1000 of which every 25th is open, and what a scan of them prints. */
  const OPEN = range(1, 1000).filter((port) => port % 25 === 0);
  const ALL_RIGHT =
    results(TARGET, ...range(1, 1000).map((port) => `${port} is ${OPEN.includes(port) ? 'open' : 'closed'}`));

  const NETWORKS: [network: string, setup: string][] = [
    ['whose host sends at most 200 RST a second', limit('OUTPUT', 'RST RST', 200)],
    ['whose host takes at most 200 SYN a second', limit('INPUT', 'SYN,ACK SYN', 200)],
    ['that loses 3 % of the packets each way', lossy(0.03)],
  ];
  for (const [network, setup] of NETWORKS) {
    test(`every answer is right in a network ${network}`, needsNetwork, async (t) => {
      assert.deepEqual(await run(t, inNetwork(listenAt(OPEN) + setup, scanTarget('-p', '1-1000'))), {
        status: 0, stderr: '', stdout: ALL_RIGHT,
      });
    });
  }

  for (const timeout of ['0.5', '1']) { // with no time for a second SYN
    test(`if -t is ${timeout}, a silent port is asked again when others answer`, needsNetwork, async (t) => {
      const setup = listenAt([80]) + dropFirst('80');
      assert.equal((await run(t, inNetwork(setup, scanTarget('-p', '80-81', '-t', timeout)))).stdout,
        results(TARGET, '80 is open', '81 is closed'));
    });
  }

  for (const answer of ['open', 'closed']) {
    test(`a silent port is asked again when a port that is ${answer} answered late`, needsNetwork, async (t) => {
      // Of the first 80 ports, at least one answers quickly, even if the scanner is short of time. Port 81 answers the
      // second SYN, and 82 the third, for which this -t leaves no time.
      const losses = dropFirst('81') + dropFirst('82', 2);
      const setup = answer === 'open' ? listenAt(range(1, 81)) + losses : losses;
      assert.equal((await run(t, inNetwork(setup, scanTarget('-p', '1-82', '-t', '1.5')))).stdout,
        results(TARGET, ...range(1, 81).map((port) => `${port} is ${answer}`), '82 is closed'));
    });
  }

  test('a port on which the system gives up is asked again when a port answered late', needsNetwork, async (t) => {
    const setup = `echo 1 > /proc/sys/net/ipv4/tcp_syn_retries\n${dropFirst('81')}${dropFirst('82', 3)}`;
    assert.equal((await run(t, inNetwork(setup, scanTarget('-p', '1-82', '-t', '3600')))).stdout,
      results(TARGET, ...range(1, 82).map((port) => `${port} is closed`)));
  });

  test('silent ports are asked again until two rounds in a row bring no answer', needsNetwork, async (t) => {
    const drops: [port: number, count: number][] = [[2, 1], [3, 3], [4, 6]]; // of the SYNs of so many rounds
    const setup = drops.map(([port, count]) => dropFirst(`${port}`, count)).join('');
    assert.equal((await run(t, inNetwork(setup, scanTarget('-p', '1-4', '-t', '0.3')))).stdout,
      results(TARGET, '1 is closed', '2 is closed', '3 is closed', '4 is filtered'));
  });

  test('rounds that bring answers go on, however many there are', needsNetwork, async (t) => {
    const setup = range(1, 12).map((port) => dropFirst(`${port}`, port)).join('');
    assert.equal((await run(t, inNetwork(setup, scanTarget('-p', '1-13', '-t', '0.3')))).stdout,
      results(TARGET, ...range(1, 13).map((port) => `${port} is closed`)));
  });

  test('a host that answers one port more each time it is asked is asked ten times', needsNetwork, async (t) => {
    const setup = range(1, 12).map((port) => dropFirst(`${port}`, port)).join('');
    const silent = rule('14:313', 'DROP');
    assert.equal((await run(t, inNetwork(setup + silent, scanTarget('-p', '1-313', '-t', '0.3')))).stdout, results(
      TARGET, ...range(1, 9).map((port) => `${port} is closed`), '10 is filtered', '11 is filtered', '12 is filtered',
      '13 is closed', ...range(14, 313).map((port) => `${port} is filtered`),
    ));
  });

  test('a scan whose time-out leaves no time for a second SYN slows down, too', needsNetwork, async (t) => {
    // At full speed, each of the ten rounds would bring only a few answers.
    const setup = limit('INPUT', 'SYN,ACK SYN', 25);
    assert.equal((await run(t, inNetwork(setup, scanTarget('-p', '1-300', '-t', '0.2')))).stdout,
      results(TARGET, ...range(1, 300).map((port) => `${port} is closed`)));
  });

  test('ports whose time passes during an outage are asked again', needsNetwork, async (t) => {
    // After 300 ports, nothing arrives for a while: neither of the SYNs to the next 4,096 ports, which are in flight
    // together, nor the first ones to the last ports.
    const outage = dropFirst('301:4396', 2) + dropFirst('4397:5000', 1);
    const { stdout } = await run(t, inNetwork(outage, scanTarget('-p', '1-5000', '-t', '1.5')));
    assert.equal(stdout, results(TARGET, ...range(1, 5000).map((port) => `${port} is closed`)));
  });

  test('the time to answer counts from the SYN, even if the scanner was held up before', needsBoth, async (t) => {
    const heldUp = strace('socket', 'delay_exit=2000000', scanTarget('-p', '80', '-t', '1.5'));
    const setup = listenAt([80]) + dropFirst('80'); // so that the answer takes a second
    assert.equal((await run(t, inNetwork(setup, asChild(heldUp)))).stdout, results(TARGET, '80 is open'));
  });

  test('if answers take so long that -t leaves no time for a second SYN, a silent port is asked again', needsNetwork,
    async (t) => {
      const setup = dropFirst('1:9') + dropFirst('10', 3) + dropFirst('11:20'); // most answers take a second
      assert.equal((await run(t, inNetwork(setup, scanTarget('-p', '1-20', '-t', '2')))).stdout,
        results(TARGET, ...range(1, 20).map((port) => `${port} is closed`)));
    });

  /** How many sockets are open at each connect() of a scan in the network made by setup, with few file descriptors. */
  async function inFlight(t: TestContext, setup: string, ports: string, descriptors: number): Promise<number[]> {
    const file = join(scratch(t), 'calls');
    const scanner = traced(file, scanTarget('-p', ports), 'connect,close');
    await run(t, inNetwork(`${setup}\nulimit -n ${descriptors}\n`, scanner));
    const open = new Set<string>();
    const counts: number[] = [];
    for (const [, call, socket = ''] of readFileSync(file, 'utf8').matchAll(/(connect|close)\((\d+)/g)) {
      if (call === 'close') open.delete(socket);
      else counts.push(open.add(socket).size);
    }
    return counts;
  }

  test('few probes are in flight as long as answers come late, but many if the host is just slow', needsBoth,
    async (t) => {
      // Ports from 81 on answer after a second, and no more than about 60 probes can be in flight.
      const counts = await inFlight(t, dropFirst('81:600'), '1-600', 80);
      const full = counts.findIndex((count) => count > 50);
      const slow = counts.findIndex((_, at) => at > full && counts.slice(at, at + 20).every((count) => count <= 16));
      assert.ok(full >= 0 && slow > full && counts.slice(slow).some((count) => count > 50), `${counts}`);
    });

  test('if one SYN in eight is lost, many probes are in flight all the same', needsBoth, async (t) => {
    const setup = 'on_target iptables -A INPUT -p tcp --syn -m statistic --mode nth --every 8 --packet 0 -j DROP\n';
    // About 30 probes can be in flight. Some 250 ports later, each of them is one that lost its SYN.
    const counts = await inFlight(t, setup, '1-800', 50);
    assert.ok(counts.slice(-250).some((count) => count > 20), `${counts}`);
  });

  test('if file descriptors run out, fewer probes are in flight and every answer is right', needsNetwork, async (t) => {
    const setup = `${listenAt([1, 300, 1500])}${rule('2', 'DROP')}${rule('1000', 'DROP')}\nulimit -n 48\n`;
    const answer = (port: number) => ({ 1: 'open', 2: 'filtered', 300: 'open', 1000: 'filtered', 1500: 'open' })[port];
    assert.deepEqual(await run(t, inNetwork(setup, scanTarget('-p', '1-1500', '-t', '0.5'))), {
      status: 0,
      stderr: '',
      stdout: results(TARGET, ...range(1, 1500).map((port) => `${port} is ${answer(port) ?? 'closed'}`)),
    });
  });

  test('if file descriptors run out, the scanner waits for a reply before it tries again', needsBoth, async (t) => {
    const file = join(scratch(t), 'calls');
    const setup = `${rule('1:100', 'DROP')}\nulimit -n 48\n`;
    await run(t, inNetwork(setup, traced(file, scanTarget('-p', '1-100', '-t', '0.5'), 'socket')));
    const failed = readFileSync(file, 'utf8').split('EMFILE').length - 1;
    assert.ok(failed > 0 && failed < 50, `socket() failed ${failed} times`);
  });

  test('if there is a file descriptor for one probe alone, the ports are asked one by one', needsNetwork, async (t) => {
    const code = `const { prototype } = require('net').Socket;
      const { connect } = prototype;
      let calls = 0;
      prototype.connect = function (...args) {
        if (++calls !== 2) return connect.apply(this, args);
        process.nextTick(() => this.emit('error', Object.assign(new Error(), { code: 'EMFILE' })));
      };`;
    const scanner = inNetwork(rule('80', 'DROP'), scanTarget('-p', '80-81', '-t', '0.5'));
    assert.deepEqual(await run(t, scanner, preload(t, code)), {
      status: 1, stderr: '', stdout: results(TARGET, '80 is filtered', '81 is closed'),
    });
  });

  test('if there is no file descriptor at all, the scan ends with status 2 and says so', needsStrace,
    async (t) => {
      const none = strace('socket', 'error=EMFILE:when=5+', scan('-H', '127.0.0.1', '-p', '1-2000', '--open'));
      const { status, stdout, stderr } = await run(t, none);
      assert.deepEqual({ status, stdout }, { status: 2, stdout: results('127.0.0.1') });
      assert.match(stderr, /^portscanner\.ts: cannot scan port \d+ of 127\.0\.0\.1 \(EMFILE\)\n$/);
    });

  test('if no local port is available, the scan ends with status 2 and says so', needsNetwork, async (t) => {
    const setup = `
      echo 54321 54321 > /proc/sys/net/ipv4/ip_local_port_range
      echo 54321 > /proc/sys/net/ipv4/ip_local_reserved_ports
    `;
    assert.deepEqual(await run(t, inNetwork(setup, scanTarget('-p', '80-90'))), {
      status: 2,
      stdout: results(TARGET),
      stderr: `portscanner.ts: cannot scan port 80 of ${TARGET} (EADDRNOTAVAIL)\n`,
    });
  });

  test('after a fault no port is asked any more', needsStrace, async (t) => {
    const file = join(scratch(t), 'calls');
    const fault = ['-e', 'inject=connect:error=EADDRNOTAVAIL:when=10', ...scan('-H', '127.0.0.1', '-p', '1-1000')];
    assert.equal((await run(t, traced(file, fault))).status, 2);
    assert.ok(connects(file) < 100, `connect() was called ${connects(file)} times`);
  });

  test('what was answered before a fault reaches a slow reader', needsStrace, async (t) => {
    const fault = strace('connect', 'error=EADDRNOTAVAIL:when=5001', scan('-H', '127.0.0.1', '-p', '1-5001'));
    const scanner = start(t, fault);
    scanner.process.stdout?.pause();
    await reported(scanner);
    scanner.process.stdout?.resume();
    const { status, stdout } = await scanner.ended;
    assert.equal(status, 2);
    assert.equal(stdout.split('\n').length, 1 + 5000 + 1); // more than a pipe holds
  });

  test('a fault ends the scan with status 2 even if nobody reads stderr', LIMIT, async (t) => {
    const scanner = start(t, scan('-H', '127.0.0.1', '-p', 'abc'));
    scanner.process.stderr?.destroy();
    assert.deepEqual(await scanner.ended, { status: 2, stdout: '', stderr: '' });
  });

  const needsOffline = { ...LIMIT, skip: cannotRun(...offline(['true'])) };
  test('a network to which there is no route ends the scan with status 2', needsOffline, async (t) => {
    assert.deepEqual(await run(t, offline(scan('-H', '192.0.2.1', '-p', '80-90'))), {
      status: 2,
      stdout: results('192.0.2.1'),
      stderr: 'portscanner.ts: cannot scan port 80 of 192.0.2.1 (ENETUNREACH)\n',
    });
  });

  test('an answer that came in time counts, even if the scanner was stopped until after the time-out', needsStrace,
    async (t) => {
      const port = await closedPort();
      const stopped = strace('connect', 'delay_exit=700000', scan('-H', '127.0.0.1', '-p', `${port}`, '-t', '0.2'));
      assert.equal((await run(t, stopped)).stdout, results('127.0.0.1', `${port} is closed`));
    });

  test('a neighbor that the system knows to be absent is filtered, not a fault', needsStrace, async (t) => {
    // As macOS does it: connect() fails at once, instead of when nobody has answered.
    const absent = strace('connect', 'error=EHOSTUNREACH', scan('-H', '127.0.0.1', '-p', '1'));
    assert.deepEqual(await run(t, absent), { status: 1, stderr: '', stdout: results('127.0.0.1', '1 is filtered') });
  });

  const RESETS: Record<string, (connection: Socket) => unknown> = {
    'resets right': (connection) => connection.resetAndDestroy(),
    'ends and resets right': (connection) => connection.end(() => connection.resetAndDestroy()),
  };
  for (const [what, reset] of Object.entries(RESETS)) {
    test(`the port of a server that ${what} after the handshake is open`, needsStrace, async (t) => {
      const port = await listen(t, reset);
      // connect() returns after the RST.
      const late = strace('connect', 'delay_exit=300000', scan('-H', '127.0.0.1', '-p', `${port}`));
      assert.deepEqual(await run(t, late), { status: 0, stderr: '', stdout: results('127.0.0.1', `${port} is open`) });
    });
  }

  /** A command line on a terminal of its own, which is both its stdout and its stderr. */
  const onTerminal = (commandLine: string[]) =>
    ['script', '-qec', commandLine.map((word) => `'${word}'`).join(' '), '/dev/null'];
  const needsTerminal = { ...LIMIT, skip: needsNetwork.skip || cannotRun('script', '--version') };

  const needsTracedTerminal = { ...LIMIT, skip: needsTerminal.skip || needsStrace.skip };

  /** What a terminal shows in the end: what is printed after a return of the carriage covers what was there. */
  const shown = (output: string) => output.split('\r\n').map((line) =>
    line.split('\r').reduce((before, text) => {
      const [kept = '', ...erased] = text.split('\x1b[K');
      return erased.length > 0 ? erased.at(-1) ?? '' : kept + before.slice(kept.length);
    }, '')).join('\n');

  test('on a terminal a line shows how many ports have answered, until the scan ends', needsTerminal, async (t) => {
    const setup = rule('82', 'DROP');
    const { stdout, status } = await run(t, inNetwork(setup, onTerminal(scanTarget('-p', '80-83', '-t', '0.5'))));
    assert.match(stdout, /\x1b\[K3 of 4 ports\r/);
    assert.equal(shown(stdout), results(TARGET, '80 is closed', '81 is closed', '82 is filtered', '83 is closed'));
    assert.equal(status, 1);
  });

  test('a scan of one port shows no progress', needsTerminal, async (t) => {
    const { stdout } = await run(t, inNetwork(rule('80', 'DROP'), onTerminal(scanTarget('-p', '80', '-t', '0.5'))));
    assert.doesNotMatch(stdout, / of /);
  });

  test('a scan of two ports shows progress, and erases it at the end', needsTerminal, async (t) => {
    const scanner = scanTarget('-p', '80-81', '-t', '0.5', '--open');
    const { stdout } = await run(t, inNetwork(rule('80', 'DROP'), onTerminal(scanner)));
    assert.match(stdout, /1 of 2 ports/);
    assert.equal(shown(stdout), results(TARGET));
  });

  test('Ctrl-C erases the progress and ends the scan by the signal', needsTerminal, async (t) => {
    const keyboard = join(scratch(t), 'keyboard');
    execFileSync('mkfifo', [keyboard]);
    const scanner = scanTarget('-p', '80-99', '-t', '3600').map((word) => `'${word}'`).join(' ');
    const shell = `trap : INT; ${scanner}; echo "status $?"`; // it goes on when the keyboard interrupts the scanner
    const terminal = ['sh', '-c', 'exec script -qc "$0" /dev/null < "$1"', shell, keyboard];
    const session = start(t, inNetwork(rule('82', 'DROP'), terminal));
    const typed = createWriteStream(keyboard);
    await session.printed(/19 of 20 ports/); // which is longer than what covers it at last
    typed.write('\x03');
    await session.printed(/status/);
    typed.end();
    assert.match(shown((await session.ended).stdout), /\n\[FAILED\] TCP port 81 is closed\n(\^C)?status 130\n$/);
  });

  test('a fault during the scan erases the progress', needsTracedTerminal, async (t) => {
    const fault = strace('connect', 'error=EADDRNOTAVAIL:when=1025', scanTarget('-p', '1-1025', '-t', '0.5', '--open'));
    const { status, stdout } = await run(t, inNetwork(rule('1', 'DROP'), onTerminal(fault)));
    assert.match(stdout, /\d+ of 1025 ports\r/);
    assert.match(shown(stdout), /\nportscanner\.ts: cannot scan port 1025 of [^\n]+\n$/);
    assert.equal(status, 2);
  });

  const UNKNOWN: [host: string, code: string][] = [
    [`${'x'.repeat(64)}.test`, 'ENOTFOUND'], // a label of 64 characters is refused before any name server is asked
    ['x'.repeat(300), 'EINVAL'],
    ['example.test', 'EAI_AGAIN'], // in a network without a name server
  ];
  const needsHosts = {
    ...LIMIT,
    skip: needsOffline.skip || cannotRun(...unshare('--mount'), 'mount', '--bind', '/etc/hosts', '/etc/hosts'),
  };
  for (const [host, code] of UNKNOWN) {
    test(`a host that does not resolve (${code}) ends with status 2 and its name`, needsOffline, async (t) => {
      assert.deepEqual(await run(t, offline(scan('-H', host, '-p', '80'))), {
        status: 2, stdout: '', stderr: `portscanner.ts: cannot find an IPv4 address of ${host} (${code})\n`,
      });
    });
  }

  test('a name with IPv6 addresses alone has no IPv4 address, and the message says so', needsHosts, async (t) => {
    const hosts = join(scratch(t), 'hosts');
    writeFileSync(hosts, '2001:db8::1 six.test\n');
    const inside = [...unshare('--net', '--mount'), 'sh', '-c', 'mount --bind "$0" /etc/hosts && exec "$@"', hosts];
    const { status, stderr } = await run(t, [...inside, ...scan('-H', 'six.test', '-p', '80')]);
    assert.match(stderr, /^portscanner\.ts: cannot find an IPv4 address of six\.test \(E\w+\)\n$/);
    assert.equal(status, 2);
  });

  const NO_HOST = '-H takes one name or address, without brackets or a port, not ';
  const NO_PORTS = '-p takes one list, such as 22,80, not ';
  const NO_PORT = ' is neither a port from 1 to 65535 nor a range such as 8000-8100';
  const NO_TIMEOUT = '-t takes seconds above 0 and up to 3600, such as 0.5, not ';
  const PORTS: [ports: string, offending: string][] = [
    ...[
      '', 'abc', '0', '65536', '80-', '-80', '20-10', '0-80', '80-65536', '1-2-3', '-1', '12345678901234567890',
      '1e3', '80.5', ' 80', '٨٠',
    ].map((ports): [string, string] => [ports, ports]),
    ['80,,81', ''], ['22,abc', 'abc'], ['22, 80', ' 80'],
  ];
  const WRONG: [args: string[], message: string][] = [
    [[], 'Missing required arguments: host, port'],
    [['-p', '80'], 'Missing required argument: host'],
    [['-H', 'localhost'], 'Missing required argument: port'],
    [['-H', 'localhost', '-p'], 'Not enough arguments following: p'],
    [['-H', '', '-p', '80'], `${NO_HOST}""`],
    [['-H', 'a', '-H', 'b', '-p', '80'], `${NO_HOST}["a","b"]`],
    [['-H', '[::1]', '-p', '80'], `${NO_HOST}"[::1]"`],
    [['-H', 'localhost:80', '-p', '80'], `${NO_HOST}"localhost:80"`],
    [['--host.x', '1', '-p', '80'], 'Missing required argument: host'],
    [['--no-host', '-p', '80'], `${NO_HOST}false`],
    ...PORTS.map(([ports, offending]): [string[], string] =>
      [['-H', 'localhost', `-p=${ports}`], `${JSON.stringify(offending)}${NO_PORT}`]),
    [['-H', 'localhost', '-p', '80', '-p', '81'], `${NO_PORTS}["80","81"]`],
    [['-H', 'localhost', '--no-port'], `${NO_PORTS}false`],
    ...['0', '0.0', '-1', 'abc', '', '3600.1', '1e1', '1.', '.', '1.2.3'].map(
      (seconds): [string[], string] =>
        [['-H', 'localhost', '-p', '80', '-t', seconds], `${NO_TIMEOUT}${JSON.stringify(seconds)}`],
    ),
    [['-H', 'localhost', '-p', '80', '-t', '1', '-t', '2'], `${NO_TIMEOUT}["1","2"]`],
    [['-H', 'localhost', '-p', '80', '443'], 'unexpected argument "443"; separate ports with commas'],
    [['-H', 'localhost', '-p', '80', '--', '443'], 'unexpected argument "443"; separate ports with commas'],
    [['-H', 'localhost', '-p', '80', '--bogus'], 'Unknown argument: bogus'],
    [['-H', 'localhost', '-p', '80', '--open=xyz'], '--open takes no value'],
    [['-H', 'localhost', '-p', '80', '--open.x'], 'Unknown argument: open.x'],
    [['-H', 'localhost', '-p', '80', '-t'], 'Not enough arguments following: t'],
  ];
  for (const [args, message] of WRONG) {
    test(`portscanner.ts ${args.join(' ')}: ${message}`, LIMIT, async (t) => {
      assert.deepEqual(await run(t, scan(...args), { LANG: 'de_DE.UTF-8', LC_ALL: 'de_DE.UTF-8' }), {
        status: 2, stdout: '', stderr: `portscanner.ts: ${message}\n${USAGE}`,
      });
    });
  }

  const ATTACHED: string[][] = [
    ['-H127.0.0.1', '-p1-3', '-t.5'], ['-H=127.0.0.1', '-p=1-3', '-t=.5'],
    ['--host=127.0.0.1', '--port=1-3', '--timeout=.5'], ['--host', '127.0.0.1', '--port', '1-3', '--timeout', '.5'],
  ];
  for (const args of ATTACHED) {
    test(`portscanner.ts ${args.join(' ')} scans those ports of that host`, LIMIT, async (t) => {
      assert.deepEqual(await run(t, scan(...args)), {
        status: 1, stderr: '', stdout: results('127.0.0.1', '1 is closed', '2 is closed', '3 is closed'),
      });
    });
  }

  test('-p with attached ports takes a list', LIMIT, async (t) => {
    const { stdout } = await run(t, scan('-Hlocalhost', '-p22,9-9,80'));
    assert.match(stdout, /^Connecting to 127\.0\.0\.1\.\.\.\n.* 22 is .*\n.* 9 is .*\n.* 80 is .*\n$/);
  });

  test('a scan that ends before all answers are known has status 2', LIMIT, async (t) => {
    const code = "require('net').Socket.prototype.connect = () => {};"; // nothing is left to wait for
    assert.deepEqual(await run(t, scan('-H', '127.0.0.1', '-p', '1'), preload(t, code)), {
      status: 2, stdout: results('127.0.0.1'), stderr: '',
    });
  });

  for (const method of ['connect', 'destroy']) {
    test(`an unexpected exception in ${method}() ends the scan with status 2 and no stack trace`, LIMIT, async (t) => {
      const code = `require('net').Socket.prototype.${method} = () => { throw new TypeError('unexpected'); };`;
      const { status, stderr } = await run(t, scan('-H', '127.0.0.1', '-p', '1'), preload(t, code));
      assert.deepEqual({ status, stderr }, { status: 2, stderr: 'portscanner.ts: unexpected\n' });
    });
  }

  test('an unexpected exception ends the scan even if a port has not answered', needsNetwork, async (t) => {
    const code = "require('net').Socket.prototype.destroy = () => { throw new TypeError('unexpected'); };";
    const scanner = inNetwork(rule('80', 'DROP'), scanTarget('-p', '80-81', '-t', '3600'));
    assert.equal((await run(t, scanner, preload(t, code))).status, 2);
  });

  for (const option of ['-h', '--help']) {
    test(`portscanner.ts ${option} prints the usage`, LIMIT, async (t) => {
      const { status, stdout, stderr } = await run(t, scan(option));
      assert.ok(stdout.startsWith(USAGE));
      for (const listed of ['-H, --host ', '-p, --port ', '-t, --timeout ', '[default: 3]', '--open ', '--version ']) {
        assert.ok(stdout.includes(listed), listed);
      }
      assert.deepEqual({ status, stderr }, { status: 0, stderr: '' });
    });
  }

  test('portscanner.ts --version prints the version of the package', LIMIT, async (t) => {
    assert.deepEqual(await run(t, scan('--version')), { status: 0, stdout: `${version}\n`, stderr: '' });
  });

  test('closing stdout ends the scan at once and silently', needsNetwork, async (t) => {
    const setup = rule('10000:20000', 'DROP'); // none of them can answer within the hour
    const head = ['sh', '-c', '{ "$@"; echo "$?" > /run/status; } | head -1; exit "$(cat /run/status)"', 'sh'];
    assert.deepEqual(await run(t, inNetwork(setup, [...head, ...scanTarget('-p', '1-20000', '-t', '3600')])), {
      status: 2, stdout: results(TARGET), stderr: '',
    });
  });

  test('a full disk ends the scan with status 2 and the code', { ...LIMIT, skip: noFullDisk() }, async (t) => {
    assert.deepEqual(await run(t, onFullDisk(scan('-H', '127.0.0.1', '-p', '1'))), {
      status: 2, stdout: '', stderr: 'portscanner.ts: cannot print the answers (ENOSPC)\n',
    });
  });
});
