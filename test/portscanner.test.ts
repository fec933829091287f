import assert from 'node:assert/strict';
import { test } from 'node:test';
import { closedPort, listen } from './peers';
import { cannotRun, LIMIT, noIPv6, run, start, tsNode, unshare } from './scripts';

const scan = (...args: string[]) => tsNode('portscanner.ts', ...args);

test('a port at which someone listens is open', LIMIT, async (t) => {
  const port = await listen(t, () => {});
  assert.deepEqual(await run(t, scan('-H', '127.0.0.1', '-p', `${port}`)), {
    status: 0, stderr: '', stdout: `Connecting to 127.0.0.1...\n[OK] TCP port ${port} is open\n`,
  });
});

test('a port at which nobody listens is closed', LIMIT, async (t) => {
  const port = await closedPort();
  assert.deepEqual(await run(t, scan('--host', '127.0.0.1', '--port', `${port}`)), {
    status: 1, stderr: '', stdout: `Connecting to 127.0.0.1...\n[FAILED] TCP port ${port} is closed\n`,
  });
});

test('an open port on an IPv6 address is open', { ...LIMIT, skip: noIPv6() }, async (t) => {
  const port = await listen(t, () => {}, '::1');
  assert.deepEqual(await run(t, scan('-H', '::1', '-p', `${port}`)), {
    status: 0, stderr: '', stdout: `Connecting to ::1...\n[OK] TCP port ${port} is open\n`,
  });
});

test('the scanned server sees the connection close in order', LIMIT, async (t) => {
  const closed = new Promise((resolve, reject) => {
    listen(t, (connection) => connection.on('end', resolve).on('error', reject).resume())
      .then((port) => run(t, scan('-H', '127.0.0.1', '-p', `${port}`)));
  });
  await closed;
});

const skip = cannotRun(...unshare('--net'), 'ip', 'link', 'set', 'lo', 'up');
test('a port that TCP connects to itself is closed', { ...LIMIT, skip }, async (t) => {
  // A network namespace in which 54321 is the one port that the system can choose as the local one.
  const pinned = 'ip link set lo up && echo 54321 54321 > /proc/sys/net/ipv4/ip_local_port_range && exec "$@"';
  const inside = [...unshare('--net'), 'sh', '-c', pinned, 'sh'];
  assert.deepEqual(await run(t, [...inside, ...scan('-H', 'localhost', '-p', '54321')]), {
    status: 1, stderr: '', stdout: 'Connecting to 127.0.0.1...\n[FAILED] TCP port 54321 is closed\n',
  });
});

test('a network that cannot be reached is no closed port', { ...LIMIT, skip }, async (t) => {
  const inside = [...unshare('--net'), '--']; // where even the loopback interface is down
  assert.deepEqual(await run(t, [...inside, ...scan('-H', '192.0.2.1', '-p', '80')]), {
    status: 2,
    stdout: 'Connecting to 192.0.2.1...\n',
    stderr: 'portscanner.ts: cannot scan port 80 of 192.0.2.1 (ENETUNREACH)\n',
  });
});

test('a host that does not resolve ends with status 2 and its name', LIMIT, async (t) => {
  const host = `${'x'.repeat(64)}.test`; // a label of 64 characters is refused before any name server is asked
  assert.deepEqual(await run(t, scan('-H', host, '-p', '80')), {
    status: 2, stdout: '', stderr: `portscanner.ts: cannot scan port 80 of ${host} (ENOTFOUND)\n`,
  });
});

const WRONG: [string[], string][] = [
  [[], 'Missing required arguments: host, port'],
  [['-p', '80'], 'Missing required argument: host'],
  [['-H', 'localhost'], 'Missing required argument: port'],
  [['-H', 'localhost', '-p'], 'Not enough arguments following: p'],
  [['-H', '', '-p', '80'], '-H takes one name or address'],
  [['-H', 'a', '-H', 'b', '-p', '80'], '-H takes one name or address'],
  [['--no-host', '-p', '80'], '-H takes one name or address'],
  ...['', 'abc', '0', '65536', '1e3', '0x50', '80.5', ' 80', '-1', '٨٠', '12345678901234567890'].map(
    (port): [string[], string] =>
      [['-H', 'localhost', `-p=${port}`], `port "${port}" is not a whole number from 1 to 65535`],
  ),
  [['-H', 'localhost', '-p', '80', '-p', '81'], 'port "80,81" is not a whole number from 1 to 65535'],
  [['-H', 'localhost', '-p', '80', '443'], 'Unknown argument: 443'],
  [['-H', 'localhost', '-p', '80', '--bogus'], 'Unknown argument: bogus'],
];
for (const [args, message] of WRONG) {
  test(`portscanner.ts ${args.join(' ')} is wrong usage: ${message}`, LIMIT, async (t) => {
    assert.deepEqual(await run(t, scan(...args), { LANG: 'de_DE.UTF-8', LC_ALL: 'de_DE.UTF-8' }), {
      status: 2, stdout: '', stderr: `portscanner.ts: ${message}\n`,
    });
  });
}

for (const option of ['-h', '--help']) {
  test(`portscanner.ts ${option} prints the usage`, LIMIT, async (t) => {
    const { status, stdout, stderr } = await run(t, scan(option));
    assert.match(stdout, /^Usage: npx ts-node portscanner\.ts -H <host> -p <port>\n/);
    assert.match(stdout, /-H, --host /);
    assert.match(stdout, /-p, --port /);
    assert.deepEqual({ status, stderr }, { status: 0, stderr: '' });
  });
}

test('portscanner.ts --version prints the version of the package', LIMIT, async (t) => {
  const { version } = require('../package.json');
  assert.deepEqual(await run(t, scan('--version')), { status: 0, stdout: `${version}\n`, stderr: '' });
});

test('a reader that goes away does not break the scan', LIMIT, async (t) => {
  const scanner = start(t, scan('-H', '127.0.0.1', '-p', `${await closedPort()}`));
  scanner.process.stdout?.destroy();
  assert.deepEqual(await scanner.ended, { status: 1, stdout: '', stderr: '' });
});
