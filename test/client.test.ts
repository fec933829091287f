import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createReadStream } from 'node:fs';
import type { Socket } from 'node:net';
import { describe, test, type TestContext } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import {
  ABSENT, dropFirst, inNetwork, listenAt, noLoopback, noNameServer, noNetwork, noOffline, offline, probes, QUICK_ARP,
  rule, selfConnecting, TARGET, withSilentNameServer,
} from './network';
import { accepted, closedPort, documentedServer, listen } from './peers';
import {
  edited, type Ended, inState, intoPipe, LIMIT, node, noFullDisk, noIPv6, noProc, onFullDisk, RAW, run, start,
  startServer, VISIBLE,
} from './scripts';

const HELLO = 'Hello World!'; // the message, if none is given
const LONG = 'añ€😀'.repeat(12_000); // 120,000 bytes
const IPV4 = '127.0.0.1';

const client = (port: number, ...message: string[]) => node('client.ts', IPV4, `${port}`, ...message);

/** The same if the timeout is not 10 s. */
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

// What a server may do: wait for data, and then send this reply and close; or send back what arrives, and never close.
const replying = (reply: string) => (socket: Socket) => socket.once('data', () => socket.end(reply));
const repeating = (socket: Socket) => socket.on('data', (message) => socket.write(message));

/** Resolves when the system has taken the bytes. Over loopback, they are then at the client. */
const sent = (socket: Socket, bytes: string | Buffer) => new Promise((resolve) => socket.write(bytes, resolve));

const needsNetwork = { ...LIMIT, skip: noNetwork() };

describe('client.ts', { concurrency: 4 }, () => {
  type Serve = (t: TestContext) => Promise<number>; // starts a server, and resolves to its port
  const SERVERS: [server: string, serve: Serve, message?: string, host?: string, skip?: string | false][] = [
    ['that works like the Python original', (t) => listen(t, documentedServer)],
    ['that has an IPv6 address', (t) => listen(t, documentedServer, '::1'), HELLO, '::1', noIPv6()],
    ['like server.ts', async (t) => (await startServer(t)).port, LONG],
    ['that sends a byte at a time', (t) => listen(t, async (socket) => {
      const [message] = await once(socket.setNoDelay(true), 'data') as [Buffer];
      for (const byte of message) await sent(socket, Buffer.of(byte));
    }), 'Grüße 😀'],
    ['that replies only when it has the whole message', (t) => listen(t, (socket) => {
      let missing = 120_000;
      socket.on('data', (chunk) => { if ((missing -= chunk.length) === 0) socket.end(LONG); });
    }), LONG],
    ['that sends something within each timeout', (t) => listen(t, async (socket) => {
      for (const part of ['He', 'llo', ' World', '!']) {
        await setTimeout(2000); // the timeout is 6 s
        await sent(socket.resume(), part);
      }
    })],
    ['that does not close', (t) => listen(t, repeating)],
  ];
  for (const [server, serve, message = HELLO, host = IPV4, skip = false] of SERVERS) {
    test(`the client talks to a server ${server}`, { ...LIMIT, skip }, async (t) => {
      const port = await serve(t);
      assert.deepEqual(await run(t, withTimeout(6, port, message, host)), success(port, message, host));
    });
  }

  test('a message of any characters is sent unchanged', LIMIT, async (t) => {
    for (const message of [' ', '--help', '--', '\ufeffBOM, \ufffd, two\nlines, 汉语', '"$(id)" \'`id`\' \\']) {
      const port = await listen(t, documentedServer);
      assert.deepEqual(await run(t, client(port, message)), success(port, message));
    }
  });

  const AFTER_STOP: [what: string, before: string, during: string, after: string][] = [
    ['the whole reply', '', HELLO, ''], ['half of the reply', '', 'Hello', ' World!'],
    ['another part of the reply', 'Hello', ' World', '!'],
  ];
  for (const [what, before, during, after] of AFTER_STOP) {
    test(`a client suspended beyond the timeout carries on if ${what} arrived in the meantime`, LIMIT, async (t) => {
      const { port, connection } = await accepted(t);
      const talk = start(t, withTimeout(5, port));
      const server = await connection;
      await once(server, 'data');
      await sent(server, before);
      await inState(talk.process, 'S'); // it waits for the reply
      talk.process.kill('SIGSTOP');
      await inState(talk.process, 'T');
      await sent(server, during);
      await setTimeout(5200);
      talk.process.kill('SIGCONT');
      await inState(talk.process, 'S').catch(() => {}); // it has the reply, and may have ended
      await sent(server, after);
      assert.deepEqual(await talk.ended, success(port));
    });
  }

  test('a client suspended while connecting carries on if the connection is up when it resumes', needsNetwork,
    async (t) => {
      const setup = listenAt([80], 'on target', '(connection) => connection.pipe(connection)') + dropFirst('80');
      const talk = start(t, inNetwork(setup, withTimeout(2, 80, HELLO, TARGET)));
      const signal = (name: NodeJS.Signals) => process.kill(-(talk.process.pid ?? NaN), name);
      while (probes(talk) === 0) await setTimeout(10);
      signal('SIGSTOP');
      await setTimeout(2500); // the second SYN, after a second, is answered
      signal('SIGCONT');
      assert.deepEqual(await talk.ended, success(80, HELLO, TARGET));
    });

  const REPLIES: [does: string, talk: (socket: Socket) => unknown, error: string, reply: string, sent?: string][] = [
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
      await inState(talk.process, 'S'); // it waits for more
      server.resetAndDestroy();
      assert.deepEqual(await talk.ended, broken('read ECONNRESET', port));
    });
  }

  test('the client gives up on a server that never stops sending', LIMIT, async (t) => {
    const port = await listen(t, (connection) => createReadStream('/dev/zero').pipe(connection));
    const { stdout, ...end } = await run(t, client(port));
    assert.deepEqual({ ...end, stdout: '' }, failed('the reply differs from the message'));
    assert.match(stdout, /\nResponse from server: (\\u\{0\}){12,65536}\nConnection closed\.\n$/);
  });

  const SMALL_SOCKETS = 'echo 4096 4096 4096 | tee /proc/sys/net/ipv4/tcp_rmem > /proc/sys/net/ipv4/tcp_wmem\n';
  const TOO_LONG: [what: string, server: string, expected: Ended][] = [
    ['the client gives up on a server that closes and reads nothing', '(connection) => connection.end()',
      failed('server closed after 0 of 120000 bytes', conversation(80, ''))],
    ['the client reads while it still sends', '(connection) => connection.pipe(connection)',
      success(80, LONG)],
  ];
  for (const [what, server, expected] of TOO_LONG) {
    test(`if a message is longer than the sockets hold, ${what}`, needsNetwork, async (t) => {
      const setup = listenAt([80], 'here', `{ allowHalfOpen: true, pauseOnConnect: true }, ${server}`);
      assert.deepEqual(await run(t, inNetwork(SMALL_SOCKETS + setup, client(80, LONG))), expected);
    });
  }

  test('characters that control a terminal are escaped, except tab and newline', LIMIT, async (t) => {
    const port = await listen(t, replying(RAW));
    assert.equal((await run(t, client(port))).stdout, conversation(port, VISIBLE));
  });

  const UNREACHABLE: [what: string, commandLine: string[], error: string | RegExp, skip?: string | false][] = [
    ['a host that does not exist', inNetwork(QUICK_ARP, node('client.ts', ABSENT, '80')),
      `connect EHOSTUNREACH ${ABSENT}:80`, noNetwork()],
    ['a host that drops packets', inNetwork(rule('80', 'DROP'), withTimeout(1, 80, HELLO, TARGET)),
      `nothing arrived from ${TARGET} port 80 for 1 s`, noNetwork()],
    ['a network without a route', offline(node('client.ts', '192.0.2.1', '80')),
      'connect ENETUNREACH 192.0.2.1:80 - Local (0.0.0.0:0)', noOffline()],
    ['a lookup that fails after more than the timeout', withSilentNameServer(withTimeout(1, 80, HELLO, 'example.test')),
      'getaddrinfo EAI_AGAIN example.test', noNameServer()],
    ['the client connecting to itself', selfConnecting(node('client.ts')),
      'nothing is listening on port 54321: TCP connected the socket to itself', noLoopback()],
  ];
  for (const [what, commandLine, error, skip = false] of UNREACHABLE) {
    test(`${what} is an error`, { ...LIMIT, skip }, async (t) => {
      assert.deepEqual(await run(t, commandLine), failed(`${error}`));
    });
  }

  test('a refused connection is an error', LIMIT, async (t) => {
    const port = await closedPort();
    assert.deepEqual(await run(t, client(port)), failed(`connect ECONNREFUSED 127.0.0.1:${port}`));
  });

  test("a connection to the same port on another host isn't mistaken for one to itself", needsNetwork, async (t) => {
    const setup = `echo 54321 54321 > /proc/sys/net/ipv4/ip_local_port_range
      ${listenAt([54321], 'on target', '(connection) => connection.pipe(connection)')}`;
    assert.deepEqual(await run(t, inNetwork(setup, node('client.ts', TARGET))), success(54321, HELLO, TARGET));
  });

  const NO_OUTPUT: [what: string, commandLine: (it: string[]) => string[], stderr: string, skip: string | false][] = [
    ['the reader of stdout leaves, the client ends silently', (it) => it, '', false],
    ['the disk is full, the client says so once', onFullDisk, 'client.ts: ENOSPC: no space left on device, write\n',
      noFullDisk()],
  ];
  for (const [what, commandLine, stderr, skip] of NO_OUTPUT) {
    test(`if ${what}, with status 1`, { ...LIMIT, skip }, async (t) => {
      const { port } = await accepted(t);
      const talk = start(t, commandLine(client(port)));
      talk.process.stdout?.destroy();
      assert.deepEqual(await talk.ended, { status: 1, stdout: '', stderr });
    });
  }

  const BLOCKED = [['follows earlier output', 'same pipe'], ['is reported once if its reader leaves', 'file']] as const;
  for (const [what, stderr] of BLOCKED) {
    test(`an error while stdout is blocked ${what}`, { ...LIMIT, skip: noProc() }, async (t) => {
      const { port, connection } = await accepted(t);
      const { program, read, leave } = intoPipe(t, client(port), stderr);
      const server = await connection;
      await once(server, 'data');
      await once(server.end('Hello'), 'close'); // so the client has closed, too
      await inState(program, 'S');
      const output = stderr === 'file' ? await leave() : (await read()).replace(conversation(port, 'Hello'), '');
      assert.equal(output, 'client.ts: server closed after 5 of 12 bytes\n');
      assert.equal(program.exitCode, 1);
    });
  }

  test('a bug is shown with its location', LIMIT, async (t) => {
    const port = await listen(t, documentedServer);
    const mistaken = edited('client.ts', 'connection.write', 'connection.wriet', IPV4, `${port}`);
    const { status, stderr } = await run(t, mistaken);
    assert.match(stderr, /^TypeError: connection\.wriet is not a function\n +at talk \(.+:\d+:\d+\)\n/);
    assert.equal(status, 1);
  });
});
