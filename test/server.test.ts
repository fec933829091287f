import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import { closedPort, dial, listen, receiveAll } from './peers';
import { cannotRun, LIMIT, noIPv6, run, start, startServer, tsNode } from './scripts';

const RECEIVED = 'Received following data: ';

/** What the server printed of the data alone, one string a receive. */
const receives = (stdout: string) =>
  stdout.split('\n').filter((line) => line.startsWith(RECEIVED)).map((line) => line.slice(RECEIVED.length));

test('an empty host is every IPv4 address, shown as 0.0.0.0', LIMIT, async (t) => {
  const { server, port } = await startServer(t, '', '0');
  (await dial(t, port, '127.0.0.2')).end();
  const { stdout } = await server.ended;
  assert.match(stdout, new RegExp(`^Server started on 0\\.0\\.0\\.0, listening on TCP port ${port}\n`));
  assert.match(stdout, /\nIncoming connection from 127\.0\.0\.[12]:\d+\.\.\.\n/);
});

test('port 0 lets the system choose, and the port it chose is shown', LIMIT, async (t) => {
  const { server, port } = await startServer(t, 'localhost', '0');
  assert.notEqual(port, 0);
  (await dial(t, port)).end();
  const { stdout } = await server.ended;
  assert.match(stdout, new RegExp(`^Server started on localhost, listening on TCP port ${port}\n`));
});

test('the line of the connection shows the address and port of the client', LIMIT, async (t) => {
  const { server, port } = await startServer(t);
  const client = await dial(t, port);
  const { localPort } = client;
  client.end();
  const { stdout } = await server.ended;
  assert.match(stdout, new RegExp(`\nIncoming connection from 127\\.0\\.0\\.1:${localPort}\\.\\.\\.\n`));
});

test('an IPv6 client is shown in brackets', { ...LIMIT, skip: noIPv6() }, async (t) => {
  const { server, port } = await startServer(t, '::1', '0');
  const client = await dial(t, port, '::1');
  const { localPort } = client;
  client.end();
  assert.match((await server.ended).stdout, new RegExp(`\nIncoming connection from \\[::1\\]:${localPort}\\.\\.\\.\n`));
});

test('several thousand bytes come back as they were sent', LIMIT, async (t) => {
  const { server, port } = await startServer(t);
  const client = await dial(t, port);
  const sent = Buffer.from(Array.from({ length: 100_000 }, (_, index) => (index * 7919) >> 8));
  const echoed = receiveAll(client);
  client.end(sent); // the half-close: nothing more is sent, but the echo is still to be read
  assert.ok((await echoed).equals(sent));
  assert.equal((await server.ended).status, 0);
});

test('a client that sends and does not read is held back, and gets all once it reads', LIMIT, async (t) => {
  const { port } = await startServer(t);
  const client = await dial(t, port);
  const sent = Buffer.alloc(64 << 20, 'Hello World! '); // more bytes than the kernel buffers on the way
  let taken = 0; // bytes of it that the kernel took
  for (let start = 0; start < sent.length; start += 1 << 16) {
    const piece = sent.subarray(start, start + (1 << 16));
    client.write(piece, () => { taken += piece.length; });
  }
  for (let before = -1; taken > before;) { // until nothing was taken for a second
    before = taken;
    await setTimeout(1000);
  }
  assert.ok(taken < sent.length, 'the server took all of it');
  const echoed = receiveAll(client);
  client.end();
  assert.ok((await echoed).equals(sent));
});

test('a receive holds at most 1,024 bytes', LIMIT, async (t) => {
  const { server, port } = await startServer(t);
  (await dial(t, port)).end('x'.repeat(5000));
  const lines = receives((await server.ended).stdout);
  assert.ok(lines.every((line) => line.length <= 1024), `lines of ${lines.map((line) => line.length)} bytes`);
  assert.equal(lines.join(''), 'x'.repeat(5000));
});

test('what each receive held is printed and sent back before the client sends more', LIMIT, async (t) => {
  const { server, port } = await startServer(t);
  const client = await dial(t, port);
  for (const message of ['one', 'two', 'three']) {
    const echo = new Promise((resolve) => client.once('data', (data) => resolve(String(data))));
    client.write(message);
    assert.equal(await echo, message);
    await server.printed(new RegExp(`\n${RECEIVED}${message}\n`));
  }
  client.end();
  assert.deepEqual(receives((await server.ended).stdout), ['one', 'two', 'three']);
});

test('a character that straddles two receives is printed whole', LIMIT, async (t) => {
  const { server, port } = await startServer(t);
  const text = `${'x'.repeat(1023)}€${'y'.repeat(1022)}😀`;
  (await dial(t, port)).end(text);
  assert.equal(receives((await server.ended).stdout).join(''), text);
});

test('a byte order mark and what is no UTF-8 are printed too', LIMIT, async (t) => {
  const { server, port } = await startServer(t);
  (await dial(t, port)).end(Buffer.from('efbbbf61ff62e282', 'hex')); // it ends in the midst of a €
  assert.equal(receives((await server.ended).stdout).join(''), '\ufeffa\ufffdb\ufffd');
});

test('a client that sends nothing gets nothing', LIMIT, async (t) => {
  const { server, port } = await startServer(t);
  const client = await dial(t, port);
  client.end();
  assert.equal((await receiveAll(client)).length, 0);
  assert.match((await server.ended).stdout, /\nIncoming connection from [^\n]*\nServer is shutting down\. Bye!\n$/);
});

test('once it has accepted a connection the server takes no other', LIMIT, async (t) => {
  const { server, port } = await startServer(t);
  const client = await dial(t, port);
  await server.printed(/Incoming connection/);
  await assert.rejects(dial(t, port), { code: 'ECONNREFUSED' });
  client.end('still served');
  const { status, stdout } = await server.ended;
  assert.equal(status, 0);
  assert.equal(stdout.match(/Incoming connection/g)?.length, 1);
  assert.deepEqual(receives(stdout), ['still served']);
});

test('a second client that waits in the backlog is not accepted', LIMIT, async (t) => {
  const { server, port } = await startServer(t);
  server.process.kill('SIGSTOP'); // both connections stand before the server can accept one
  const first = await dial(t, port);
  const second = await dial(t, port);
  const reset = new Promise((resolve) => second.on('error', (error) => resolve((error as NodeJS.ErrnoException).code)));
  server.process.kill('SIGCONT');
  assert.equal(await reset, 'ECONNRESET');
  first.end('the first');
  const { stdout } = await server.ended;
  assert.equal(stdout.match(/Incoming connection/g)?.length, 1);
  assert.deepEqual(receives(stdout), ['the first']);
});

test('a client that resets ends the server with status 1 and one line on stderr', LIMIT, async (t) => {
  const { server, port } = await startServer(t);
  const client = await dial(t, port);
  await server.printed(/Incoming connection/);
  client.resetAndDestroy();
  const { status, stdout, stderr } = await server.ended;
  assert.deepEqual({ status, stderr }, { status: 1, stderr: 'server.ts: connection lost (ECONNRESET)\n' });
  assert.match(stdout, /\nServer is shutting down\. Bye!\n$/);
});

test('a client that resets before it is accepted has no address any more', LIMIT, async (t) => {
  const { server, port } = await startServer(t);
  server.process.kill('SIGSTOP');
  const client = await dial(t, port);
  client.resetAndDestroy();
  await new Promise((resolve) => client.on('close', resolve));
  server.process.kill('SIGCONT');
  const { status, stdout, stderr } = await server.ended;
  assert.deepEqual({ status, stderr }, { status: 1, stderr: 'server.ts: connection lost (ECONNRESET)\n' });
  assert.match(stdout, /\nIncoming connection from an unknown address\.\.\.\nServer is shutting down\. Bye!\n$/);
});

test('a reader that goes away does not break the echo', LIMIT, async (t) => {
  const { server, port } = await startServer(t);
  server.process.stdout?.destroy();
  const client = await dial(t, port);
  const echoed = receiveAll(client);
  client.end('x'.repeat(5000));
  assert.equal(String(await echoed), 'x'.repeat(5000));
  const { status, stderr } = await server.ended;
  assert.deepEqual({ status, stderr }, { status: 0, stderr: '' });
});

test('a port that is taken is an error with host, port and code', LIMIT, async (t) => {
  const port = await listen(t, () => {});
  assert.deepEqual(await run(t, tsNode('server.ts', '127.0.0.1', `${port}`)), {
    status: 1, stdout: '', stderr: `server.ts: cannot listen on 127.0.0.1 port ${port} (EADDRINUSE)\n`,
  });
});

test('a host that does not resolve is an error with host, port and code', LIMIT, async (t) => {
  const host = `${'x'.repeat(64)}.test`; // a label of 64 characters is refused before any name server is asked
  assert.deepEqual(await run(t, tsNode('server.ts', host, '0')), {
    status: 1, stdout: '', stderr: `server.ts: cannot listen on ${host} port 0 (ENOTFOUND)\n`,
  });
});

const skip = cannotRun('strace', '-f', 'true');
test('the system calls are those of the document', { ...LIMIT, skip }, async (t) => {
  const port = await closedPort();
  const server = start(t, ['strace', '-f', '-qq', '-e', 'trace=socket,bind,listen,accept4', '-e', 'signal=none',
    '-o', '|cat >&2', ...tsNode('server.ts', 'localhost', `${port}`)]);
  await server.printed(/\n/);
  (await dial(t, port)).end('Hello World!');
  const { stderr } = await server.ended;
  assert.match(stderr, new RegExp([
    String.raw`socket\(AF_INET, SOCK_STREAM\S*, IPPROTO_IP\) += (?<listening>\d+)\n`,
    String.raw`.* bind\(\k<listening>, \{sa_family=AF_INET, `,
    String.raw`sin_port=htons\(${port}\), sin_addr=inet_addr\("127\.0\.0\.1"\)\}, 16\) = 0\n`,
    String.raw`.* listen\(\k<listening>, 1\) += 0\n`,
    String.raw`.* accept4\(\k<listening>, .*\) += (?!\k<listening>\b)\d+\n$`,
  ].join('')));
});

const WRONG: [string[], string][] = [
  ...['', 'abc', '65536', '1e3', '80.5', ' 80', '12345678901234567890'].map(
    (port): [string[], string] => [['localhost', port], `port "${port}" is not a whole number from 0 to 65535`],
  ),
  [['localhost', '0', 'more'], 'one argument too many: "more"'],
  [['--bogus'], 'unknown option "--bogus"'],
];
for (const [args, message] of WRONG) {
  test(`server.ts ${args.join(' ')} is wrong usage: ${message}`, LIMIT, async (t) => {
    assert.deepEqual(await run(t, tsNode('server.ts', ...args)), {
      status: 2, stdout: '', stderr: `server.ts: ${message}\nUsage: npx ts-node server.ts [host] [port]\n`,
    });
  });
}

for (const option of ['-h', '--help']) {
  test(`server.ts ${option} prints the usage`, LIMIT, async (t) => {
    const { status, stdout, stderr } = await run(t, tsNode('server.ts', option));
    assert.match(stdout, /^Usage: npx ts-node server\.ts \[host\] \[port\]\n/);
    assert.deepEqual({ status, stderr }, { status: 0, stderr: '' });
  });
}
