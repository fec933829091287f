import assert from 'node:assert/strict';
import { once } from 'node:events';
import type { Socket } from 'node:net';
import { describe, test } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import { inNetwork, listenAt, noNetwork, ONE_PORT, rule, TARGET } from './network';
import { listen } from './peers';
import { cannotRun, edited, type Ended, LIMIT, node, noIPv6, run, startServer, unless } from './scripts';

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
const replying = (reply: string | Buffer) => (socket: Socket) => socket.once('data', () => socket.end(reply));
const echoing = (socket: Socket) => socket.pipe(socket);

const ECHO = '(connection) => connection.pipe(connection)'; // for listenAt()
const needsNetwork = unless(noNetwork());

describe('client.ts', { concurrency: 4 }, () => {
  test('the client talks to a server that has an IPv6 address', unless(noIPv6()), async (t) => {
    const port = await listen(t, echoing, '::1');
    assert.deepEqual(await run(t, node('client.ts', '::1', `${port}`)), success(port, HELLO, '::1'));
  });

  test('server.ts sends back a message of many chunks', LIMIT, async (t) => {
    const { port } = await startServer(t);
    assert.deepEqual(await run(t, client(port, LONG)), success(port, LONG));
  });

  test('a server that sends a byte at a time may take longer than the timeout', LIMIT, async (t) => {
    const port = await listen(t, async (socket) => {
      const [message] = await once(socket.setNoDelay(true), 'data') as [Buffer];
      for (const byte of message) {
        await setTimeout(500);
        socket.write(Buffer.of(byte));
      }
    });
    assert.deepEqual(await run(t, withTimeout(5, port, 'Grüße 😀')), success(port, 'Grüße 😀'));
  });

  const NOT_UTF8 = Buffer.of(0xf0, 0x9f, 0x98); // shown as U+FFFD, which takes three bytes, too
  const REPLIES: [does: string, talk: (socket: Socket) => unknown, error: string, reply: string, message?: string][] = [
    ['closes during the reply', replying('Hello'), 'the server closed after 5 of 12 bytes', 'Hello'],
    ['closes without a reply', replying(''), 'the server closed after 0 of 12 bytes', ''],
    ['sends other bytes', replying('Hello world!'), 'the reply differs from the message', 'Hello world!'],
    ['sends what looks the same', replying(NOT_UTF8), 'the reply differs from the message', '\ufffd', '\ufffd'],
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
      const error = `nothing arrived from ${IPV4} port ${port} in 2 s`;
      assert.deepEqual(await run(t, withTimeout(2, port)), broken(error, port));
    });
  }

  test('a server that resets is reported as an error', LIMIT, async (t) => {
    const port = await listen(t, (socket) => socket.once('data', () => socket.resetAndDestroy()));
    assert.deepEqual(await run(t, client(port)), broken('read ECONNRESET', port));
  });

  const NO_NAME_SERVER = `
    on_target iptables -A INPUT -p udp -j DROP
    echo 'nameserver ${TARGET}\noptions timeout:2 attempts:1' > /run/resolv.conf
    mount --bind /run/resolv.conf /etc/resolv.conf
  `;
  const noLookup = cannotRun(...inNetwork(NO_NAME_SERVER, ['true']));
  test('a name server that does not reply is reported as such, even after the timeout', unless(noLookup), async (t) => {
    const lookup = withTimeout(1, 80, HELLO, 'name.test.'); // with the last dot, it is asked for this name alone
    assert.deepEqual(await run(t, inNetwork(NO_NAME_SERVER, lookup)), failed('getaddrinfo EAI_AGAIN name.test.'));
  });

  const SMALL_SOCKETS = 'echo 4096 4096 4096 | tee /proc/sys/net/ipv4/tcp_rmem > /proc/sys/net/ipv4/tcp_wmem\n';
  const NETWORKS: [what: string, setup: string, commandLine: string[], expected: Ended][] = [
    ['a host that drops packets is an error', rule('80', 'DROP'), withTimeout(1, 80, HELLO, TARGET),
      failed(`nothing arrived from ${TARGET} port 80 in 1 s`)],
    ['a refused connection is an error', '', node('client.ts', TARGET, '1'),
      failed(`connect ECONNREFUSED ${TARGET}:1`)],
    ['a connection of the client to itself is an error', ONE_PORT, node('client.ts'),
      failed('nothing is listening on port 54321')],
    ["a connection to the same port on another host isn't mistaken for one to itself",
      ONE_PORT + listenAt([54321], 'on target', ECHO), node('client.ts', TARGET), success(54321, HELLO, TARGET)],
    ['the client reads while it still sends, since the sockets may hold less than the message',
      SMALL_SOCKETS + listenAt([80], 'here', ECHO), client(80, LONG), success(80, LONG)],
  ];
  for (const [what, setup, commandLine, expected] of NETWORKS) {
    test(what, needsNetwork, async (t) => {
      assert.deepEqual(await run(t, inNetwork(setup, commandLine)), expected);
    });
  }
});
