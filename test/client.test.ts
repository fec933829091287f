import assert from 'node:assert/strict';
import type { Socket } from 'node:net';
import { test } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import { closedPort, documentedServer, listen, receiveAll } from './peers';
import { LIMIT, noIPv6, npx, run, start, startServer, tsNode } from './scripts';

const client = (port: number, ...message: string[]) => tsNode('client.ts', '127.0.0.1', `${port}`, ...message);

/** What the client prints when reply comes back from port. */
const conversation = (port: number, reply: string, host = '127.0.0.1') =>
  `Connected to server: ${host} on port ${port}\nSending some data...\n`
  + `Response from server: ${reply}\nConnection closed.\n`;

test('the client talks with a server that is written as documented', LIMIT, async (t) => {
  const port = await listen(t, documentedServer);
  assert.deepEqual(await run(t, client(port)), { status: 0, stderr: '', stdout: conversation(port, 'Hello World!') });
});

test('a message of many thousand bytes comes back from a server that is written as documented', LIMIT, async (t) => {
  const port = await listen(t, documentedServer);
  const message = 'añ€😀'.repeat(10_000);
  assert.deepEqual(await run(t, client(port, message)), { status: 0, stderr: '', stdout: conversation(port, message) });
});

test('a message of many thousand bytes comes back from server.ts', LIMIT, async (t) => {
  const { server, port } = await startServer(t);
  const message = 'añ€😀'.repeat(10_000);
  assert.deepEqual(await run(t, client(port, message)), { status: 0, stderr: '', stdout: conversation(port, message) });
  const { status, stderr } = await server.ended;
  assert.deepEqual({ status, stderr }, { status: 0, stderr: '' });
});

test('a reply that comes a byte at a time is put together', LIMIT, async (t) => {
  const port = await listen(t, (connection) => {
    connection.setNoDelay(true); // each byte in a segment of its own
    connection.once('data', async (message) => {
      for (const byte of message) {
        connection.write(Buffer.of(byte));
        await new Promise(setImmediate);
      }
    });
    connection.on('end', () => connection.end());
  });
  const message = 'Grüße 😀';
  assert.deepEqual(await run(t, client(port, message)), { status: 0, stderr: '', stdout: conversation(port, message) });
});

test('a server that waits for the end of the message before it answers is waited for', LIMIT, async (t) => {
  const message = 'x'.repeat(3000);
  const port = await listen(t, (connection) => {
    let received = '';
    connection.on('data', (data) => {
      received += data;
      if (received.length === message.length) connection.write(received);
    });
    connection.on('end', () => connection.end());
  });
  assert.deepEqual(await run(t, client(port, message)), { status: 0, stderr: '', stdout: conversation(port, message) });
});

test('the server receives the bytes of the message, and then EOF', LIMIT, async (t) => {
  let connected: (connection: Socket) => void;
  const connection = new Promise<Socket>((resolve) => { connected = resolve; });
  const port = await listen(t, (socket) => connected(socket));
  const talk = start(t, client(port, 'Hello World!'));
  const received = receiveAll(await connection);
  (await connection).on('end', async () => (await connection).end());
  (await connection).write('Hello World!');
  assert.equal(String(await received), 'Hello World!');
  assert.deepEqual(await talk.ended, { status: 0, stderr: '', stdout: conversation(port, 'Hello World!') });
});

const MESSAGES = ['', ' ', '"$(id)" \'`id`\' \\', '--help', '-', 'العربية 汉语 हिन्दी', '\ufeffmark', 'two\nlines'];
for (const message of MESSAGES) {
  test(`the message ${JSON.stringify(message)} is sent and comes back as it is`, LIMIT, async (t) => {
    const port = await listen(t, documentedServer);
    assert.deepEqual(await run(t, npx('client.ts', '127.0.0.1', `${port}`, message)), {
      status: 0, stderr: '', stdout: conversation(port, message),
    });
  });
}

test('an IPv6 address works', { ...LIMIT, skip: noIPv6() }, async (t) => {
  const port = await listen(t, documentedServer, '::1');
  assert.deepEqual(await run(t, tsNode('client.ts', '::1', `${port}`)), {
    status: 0, stderr: '', stdout: conversation(port, 'Hello World!', '::1'),
  });
});

test('a reply that ends early is printed, and ends with status 1', LIMIT, async (t) => {
  const port = await listen(t, (connection) => connection.once('data', () => connection.end('Hello')));
  assert.deepEqual(await run(t, client(port)), {
    status: 1, stderr: 'client.ts: server closed after 5 of 12 bytes\n', stdout: conversation(port, 'Hello'),
  });
});

test('a server that resets ends the client with status 1 and one line on stderr', LIMIT, async (t) => {
  const port = await listen(t, (connection) => connection.once('data', () => connection.resetAndDestroy()));
  assert.deepEqual(await run(t, client(port)), {
    status: 1,
    stderr: `client.ts: connection to 127.0.0.1 port ${port} failed (ECONNRESET)\n`,
    stdout: `Connected to server: 127.0.0.1 on port ${port}\nSending some data...\nConnection closed.\n`,
  });
});

test('a refused connection is an error with host, port and code', LIMIT, async (t) => {
  const port = await closedPort();
  assert.deepEqual(await run(t, client(port)), {
    status: 1, stdout: '', stderr: `client.ts: connection to 127.0.0.1 port ${port} failed (ECONNREFUSED)\n`,
  });
});

test('a host that does not resolve is an error with host, port and code', LIMIT, async (t) => {
  const host = `${'x'.repeat(64)}.test`; // a label of 64 characters is refused before any name server is asked
  assert.deepEqual(await run(t, tsNode('client.ts', host, '80')), {
    status: 1, stdout: '', stderr: `client.ts: connection to ${host} port 80 failed (ENOTFOUND)\n`,
  });
});

test('the connection is closed when the server has closed its side too', LIMIT, async (t) => {
  let connected: (connection: Socket) => void;
  const connection = new Promise<Socket>((resolve) => { connected = resolve; });
  const port = await listen(t, (socket) => connected(socket));
  const talk = start(t, client(port));
  (await connection).write('Hello World!');
  await receiveAll(await connection);
  // A client that does not wait for our FIN would be gone within this time.
  assert.equal(await Promise.race([talk.ended, setTimeout(500, 'still there')]), 'still there');
  (await connection).end();
  assert.deepEqual(await talk.ended, { status: 0, stderr: '', stdout: conversation(port, 'Hello World!') });
});

test('what the server sends after the reply is not printed', LIMIT, async (t) => {
  const port = await listen(t, (connection) => {
    connection.once('data', (message) => connection.write(message));
    connection.on('end', () => connection.end('and more'));
  });
  assert.equal((await run(t, client(port))).stdout, conversation(port, 'Hello World!'));
});

test('a reader that goes away does not break the conversation', LIMIT, async (t) => {
  let received: (sent: Buffer) => void;
  const sent = new Promise<Buffer>((resolve) => { received = resolve; });
  const port = await listen(t, (connection) => {
    receiveAll(connection).then(received); // up to EOF: a reset leaves it open
    documentedServer(connection);
  });
  const talk = start(t, client(port));
  talk.process.stdout?.destroy();
  assert.deepEqual(await talk.ended, { status: 0, stdout: '', stderr: '' });
  assert.equal(String(await sent), 'Hello World!');
});

const WRONG: [string[], string][] = [
  ...['', 'abc', '0', '65536', '1e3', '80.5', ' 80', '12345678901234567890'].map(
    (port): [string[], string] => [['localhost', port], `port "${port}" is not a whole number from 1 to 65535`],
  ),
  [[''], 'host "" is neither a name nor an address'],
  [['localhost', '80', 'message', 'more'], 'one argument too many: "more"'],
  [['--bogus'], 'unknown option "--bogus"'],
];
for (const [args, message] of WRONG) {
  test(`client.ts ${args.join(' ')} is wrong usage: ${message}`, LIMIT, async (t) => {
    assert.deepEqual(await run(t, tsNode('client.ts', ...args)), {
      status: 2, stdout: '', stderr: `client.ts: ${message}\nUsage: npx ts-node client.ts [host] [port] [message]\n`,
    });
  });
}

for (const option of ['-h', '--help']) {
  test(`client.ts ${option} prints the usage`, LIMIT, async (t) => {
    const { status, stdout, stderr } = await run(t, tsNode('client.ts', option));
    assert.match(stdout, /^Usage: npx ts-node client\.ts \[host\] \[port\] \[message\]\n/);
    assert.deepEqual({ status, stderr }, { status: 0, stderr: '' });
  });
}
