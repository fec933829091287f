import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createReadStream } from 'node:fs';
import type { Socket } from 'node:net';
import { describe, test, type TestContext } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import { dropFirst, inNetwork, listenAt, noNetwork, ONE_PORT, rule, suspended, TARGET } from './network';
import { accepted, listen } from './peers';
import {
  asleep, edited, type Ended, LIMIT, node, noIPv6, noStrace, RAW, run, start, startServer, strace, suspend,
  VISIBLE,
} from './scripts';

const HELLO = 'Hello World!'; // the message, if none is given
const LONG = 'añ€😀'.repeat(12_000); // 120,000 bytes
const IPV4 = '127.0.0.1';

const client = (port: number, ...message: string[]) => node('client.ts', IPV4, `${port}`, ...message);

/** The same with another timeout. */
const withTimeout = (seconds: number, port: number, message = HELLO, host = IPV4) =>
  edited('client.ts', 'TIMEOUT = 10', `TIMEOUT = ${seconds}`, host, `${port}`, message);

/** What the client prints if the server at the port sends this reply. */
const conversation = (port: number, reply: string, host = IPV4) => `Connected to server: ${host} on port ${port}\n`
  + `Sending some data...\nResponse from server: ${reply}\nConnection closed.\n`;

/** What the client leaves behind if the reply is the message. */
const success = (port: number, message = HELLO, host?: string): Ended =>
  ({ status: 0, stdout: conversation(port, message, host), stderr: '' });

/** What the client leaves behind after an error; without a reply, if the connection broke. */
const failed = (error: string, stdout = ''): Ended => ({ status: 1, stdout, stderr: `client.ts: ${error}\n` });
const broken = (error: string, port: number): Ended =>
  failed(error, `Connected to server: ${IPV4} on port ${port}\nSending some data...\n`);

// What a server may do: wait for data, and then send this reply and close; or send back whatever arrives.
const replying = (reply: string) => (socket: Socket) => socket.once('data', () => socket.end(reply));
const echoing = (socket: Socket) => socket.pipe(socket);

/** Resolves when the system has taken the bytes. Over loopback, they are then at the client. */
const sent = (socket: Socket, bytes: string | Buffer) => new Promise((resolve) => socket.write(bytes, resolve));

const ECHO = '(connection) => connection.pipe(connection)'; // for listenAt()
const needsNetwork = { ...LIMIT, skip: noNetwork() };

describe('client.ts', { concurrency: 4 }, () => {
  type Serve = (t: TestContext) => Promise<number>; // starts a server, and resolves to its port
  const SERVERS: [server: string, serve: Serve, message?: string, host?: string, skip?: string | false][] = [
    ['that has an IPv6 address', (t) => listen(t, echoing, '::1'), HELLO, '::1', noIPv6()],
    ['like server.ts', async (t) => (await startServer(t)).port, LONG],
    ['that replies only when it has the whole message', (t) => listen(t, (socket) => {
      let missing = 120_000;
      socket.on('data', (chunk) => { if ((missing -= chunk.length) === 0) socket.end(LONG); });
    }), LONG],
  ];
  for (const [server, serve, message = HELLO, host = IPV4, skip = false] of SERVERS) {
    test(`the client talks to a server ${server}`, { ...LIMIT, skip }, async (t) => {
      const port = await serve(t);
      assert.deepEqual(await run(t, node('client.ts', host, `${port}`, message)), success(port, message, host));
    });
  }

  test('a server that sends a byte at a time may take longer than the timeout', LIMIT, async (t) => {
    const port = await listen(t, async (socket) => {
      const [message] = await once(socket.setNoDelay(true), 'data') as [Buffer];
      for (const byte of message) await setTimeout(500).then(() => sent(socket, Buffer.of(byte)));
    });
    assert.deepEqual(await run(t, withTimeout(5, port, 'Grüße 😀')), success(port, 'Grüße 😀'));
  });

  test('a message of any characters is sent unchanged', LIMIT, async (t) => {
    for (const message of [' ', '--help', '--', '\ufeffBOM, \ufffd, two\nlines, 汉语', '"$(id)" \'`id`\' \\']) {
      const port = await listen(t, echoing);
      assert.deepEqual(await run(t, client(port, message)), success(port, message));
    }
  });

  for (const [what, before, during, after] of [
    ['half of the reply', '', 'Hello', ' World!'], ['another part of the reply', 'Hello', ' World', '!'],
  ] as const) {
    test(`a client suspended beyond the timeout carries on if ${what} arrived in the meantime`, LIMIT, async (t) => {
      const { port, connection } = await accepted(t);
      const talk = start(t, withTimeout(5, port));
      const server = await connection;
      await once(server, 'data');
      await sent(server, before);
      await asleep(talk.process); // it waits for the reply
      await suspend(talk.process);
      await sent(server, during);
      await setTimeout(5200);
      talk.process.kill('SIGCONT');
      await asleep(talk.process).catch(() => {}); // it has read this part, or has given up
      await sent(server, after);
      assert.deepEqual(await talk.ended, success(port));
    });
  }

  const REPLIES: [does: string, talk: (socket: Socket) => unknown, error: string, reply: string, message?: string][] = [
    ['closes during the reply', replying('Hello'), 'server closed after 5 of 12 bytes', 'Hello'],
    ['closes without a reply', replying(''), 'server closed after 0 of 12 bytes', ''],
    ['sends other bytes', replying('Hello world!'), 'the reply differs from the message', 'Hello world!'],
    ['sends bytes that look the same', replying('\x1b'), 'server closed after 1 of 6 bytes', '\\u{1b}', '\\u{1b}'],
    ['sends more at once', replying(`${HELLO}!`), 'the reply differs from the message', `${HELLO}!`],
  ];
  for (const [does, talk, error, reply, message = HELLO] of REPLIES) {
    test(`a server that ${does} is reported as an error, after the reply`, LIMIT, async (t) => {
      const port = await listen(t, talk);
      assert.deepEqual(await run(t, client(port, message)), failed(error, conversation(port, reply)));
    });
  }

  for (const before of ['', 'Hello']) {
    test(`a server that falls silent after "${before}" is reported as an error`, LIMIT, async (t) => {
      const port = await listen(t, (socket) => socket.resume().write(before));
      const error = `nothing arrived from ${IPV4} port ${port} for 2 s`;
      assert.deepEqual(await run(t, withTimeout(2, port)), broken(error, port));
    });

    test(`a server that resets after "${before}" is reported as an error`, LIMIT, async (t) => {
      const { port, connection } = await accepted(t);
      const talk = start(t, client(port));
      const server = await connection;
      await once(server, 'data');
      await sent(server, before);
      await asleep(talk.process); // it waits for more
      server.resetAndDestroy();
      assert.deepEqual(await talk.ended, broken('read ECONNRESET', port));
    });
  }

  test('a server that never stops sending is reported, once there are as many bytes as were sent', LIMIT, async (t) => {
    const port = await listen(t, (connection) => createReadStream('/dev/zero').pipe(connection));
    const { stdout, ...end } = await run(t, client(port));
    assert.deepEqual({ ...end, stdout: '' }, failed('the reply differs from the message'));
    assert.match(stdout, /\nResponse from server: (\\u\{0\}){12,65536}\nConnection closed\.\n$/);
  });

  test('characters that control a terminal are escaped, except tab and newline', LIMIT, async (t) => {
    const port = await listen(t, replying(RAW));
    assert.equal((await run(t, client(port))).stdout, conversation(port, VISIBLE));
  });

  test('a lookup may take longer than the timeout', { ...LIMIT, skip: noStrace() }, async (t) => {
    const port = await listen(t, echoing);
    const slow = strace('openat', 'delay_enter=7000000', withTimeout(5, port, HELLO, 'localhost'), ['/etc/hosts']);
    const begin = performance.now();
    assert.deepEqual(await run(t, slow), success(port, HELLO, 'localhost'));
    assert.ok(performance.now() - begin > 7000);
  });

  const DEAF = '{ pauseOnConnect: true }, (connection) => connection.end()'; // it reads nothing
  const SMALL_SOCKETS = 'echo 4096 4096 4096 | tee /proc/sys/net/ipv4/tcp_rmem > /proc/sys/net/ipv4/tcp_wmem\n';
  const NETWORKS: [what: string, setup: string, commandLine: string[], expected: Ended][] = [
    ['a host that drops packets is an error', rule('80', 'DROP'), withTimeout(1, 80, HELLO, TARGET),
      failed(`nothing arrived from ${TARGET} port 80 for 1 s`)],
    ['a client suspended while connecting carries on if the connection is up when it resumes',
      listenAt([80], 'on target', ECHO) + dropFirst('80', 2), suspended(withTimeout(4, 80, HELLO, TARGET)),
      success(80, HELLO, TARGET)],
    ['a refused connection is an error', '', node('client.ts', TARGET, '80'),
      failed(`connect ECONNREFUSED ${TARGET}:80`)],
    ['a connection of the client to itself is an error', ONE_PORT, node('client.ts'),
      failed('nothing is listening on port 54321: TCP connected the socket to itself')],
    ["a connection to the same port on another host isn't mistaken for one to itself",
      ONE_PORT + listenAt([54321], 'on target', ECHO), node('client.ts', TARGET), success(54321, HELLO, TARGET)],
    ['the client reads while it still sends, since the sockets may hold less than the message',
      SMALL_SOCKETS + listenAt([80], 'here', ECHO), client(80, LONG), success(80, LONG)],
    ['the client gives up on a server that closes without reading, even if the sockets hold less than the message',
      SMALL_SOCKETS + listenAt([80], 'here', DEAF), client(80, LONG),
      failed('server closed after 0 of 120000 bytes', conversation(80, ''))],
  ];
  for (const [what, setup, commandLine, expected] of NETWORKS) {
    test(what, needsNetwork, async (t) => {
      assert.deepEqual(await run(t, inNetwork(setup, commandLine)), expected);
    });
  }
});
