import assert from 'node:assert/strict';
import { once } from 'node:events';
import type { Socket } from 'node:net';
import { describe, test, type TestContext } from 'node:test';
import { setImmediate, setTimeout } from 'node:timers/promises';
import {
  inNetwork, listenAt, NOBODY, noNetwork, noSilentNameServer, QUICK_ARP, rule, selfConnecting, TARGET,
  withSilentNameServer,
} from './network';
import { accepted, closedPort, documentedServer, listen, preload, receiveAll } from './peers';
import {
  cannotRun, type Ended, inState, LIMIT, node, noFullDisk, noIPv6, noNc, noStrace, npx, onFullDisk, reported, run,
  type Running, scratch, start, startServer, strace,
} from './scripts';

const client = (port: number, ...message: string[]) => node('client.ts', '127.0.0.1', `${port}`, ...message);

const needsStrace = { ...LIMIT, skip: noStrace() };
const needsNetwork = { ...LIMIT, skip: noNetwork() };

/** What the client prints when reply comes back from port. */
const conversation = (port: number, reply: string, host = '127.0.0.1') =>
  `Connected to server: ${host} on port ${port}\nSending some data...\n`
  + `Response from server: ${reply}\nConnection closed.\n`;

/** What the client leaves behind when the reply is the message. */
const success = (port: number, message = 'Hello World!', host?: string): Ended =>
  ({ status: 0, stderr: '', stdout: conversation(port, message, host) });

/** Starts a client, and suspends it while it waits for the reply. */
async function suspended(t: TestContext): Promise<{ port: number; talk: Running; server: Socket }> {
  const { port, connection } = await accepted(t);
  const talk = start(t, client(port));
  const server = await connection;
  await once(server, 'data');
  await inState(talk.process, 'S');
  talk.process.kill('SIGSTOP');
  await inState(talk.process, 'T');
  return { port, talk, server };
}

describe('client.ts', { concurrency: 4 }, () => {
  test('the client talks with a server that is written as documented', LIMIT, async (t) => {
    const port = await listen(t, documentedServer);
    assert.deepEqual(await run(t, client(port)), success(port));
  });

  test('the client does not wait for a time-out that is no longer needed', LIMIT, async (t) => {
    const code = `const start = setTimeout;
      globalThis.setTimeout = (...args) => start(() => console.error('the time-out ran'), args[1]);`;
    const port = await listen(t, documentedServer);
    assert.deepEqual(await run(t, client(port), preload(t, code)), success(port));
  });

  test('a message of many thousand bytes comes back from a server that is written as documented', LIMIT, async (t) => {
    const port = await listen(t, documentedServer);
    const message = 'añ€😀'.repeat(10_000);
    assert.deepEqual(await run(t, client(port, message)), success(port, message));
  });

  test('a message of many thousand bytes comes back from server.ts', LIMIT, async (t) => {
    const { server, port } = await startServer(t);
    const message = 'añ€😀'.repeat(10_000);
    assert.deepEqual(await run(t, client(port, message)), success(port, message));
    const { status, stderr } = await server.ended;
    assert.deepEqual({ status, stderr }, { status: 0, stderr: '' });
  });

  test('a reply that comes a byte at a time is put together', LIMIT, async (t) => {
    const message = 'Grüße 😀';
    const { port, connection } = await accepted(t);
    const talk = start(t, client(port, message));
    const server = (await connection).setNoDelay(true); // each byte in a segment of its own
    for (const byte of Buffer.from(message)) {
      server.write(Buffer.of(byte));
      await setImmediate();
    }
    await receiveAll(server);
    server.end();
    assert.deepEqual(await talk.ended, success(port, message));
  });

  test('a server that waits for the end of the message before it answers is waited for', LIMIT, async (t) => {
    const message = 'x'.repeat(3000);
    const port = await listen(t, (connection) => {
      let received = '';
      connection.on('data', (data) => {
        received += String(data);
        if (received.length === message.length) connection.write(received);
      });
      connection.on('end', () => connection.end());
    });
    assert.deepEqual(await run(t, client(port, message)), success(port, message));
  });

  test('the server receives the bytes of the message, and then EOF', LIMIT, async (t) => {
    const { port, connection } = await accepted(t);
    const talk = start(t, client(port, 'Hello World!'));
    const server = await connection;
    server.write('Hello World!');
    assert.equal(String(await receiveAll(server)), 'Hello World!');
    server.end();
    assert.deepEqual(await talk.ended, success(port));
  });

  const MESSAGES = ['', ' ', '"$(id)" \'`id`\' \\', '--help', '-', 'العربية 汉语 हिन्दी', '\ufeffBOM', 'two\nlines'];
  for (const message of MESSAGES) {
    test(`the message ${JSON.stringify(message)} is sent and comes back as it is`, LIMIT, async (t) => {
      const port = await listen(t, documentedServer);
      assert.deepEqual(await run(t, client(port, message)), success(port, message));
    });
  }

  // npx has options of its own, and starts ts-node through a shell.
  for (const message of ['', '--help', '"$(id)" \'`id`\'  \\\n.']) {
    test(`the message ${JSON.stringify(message)} passes through npx as it is`, LIMIT, async (t) => {
      const port = await listen(t, documentedServer);
      assert.deepEqual(await run(t, npx('client.ts', '127.0.0.1', `${port}`, message)), success(port, message));
    });
  }

  test('an IPv6 address works', { ...LIMIT, skip: noIPv6() }, async (t) => {
    const port = await listen(t, documentedServer, '::1');
    assert.deepEqual(await run(t, node('client.ts', '::1', `${port}`)), success(port, 'Hello World!', '::1'));
  });

  /** What the client prints when nothing comes back from port. */
  const noReply = (port: number, host = '127.0.0.1') =>
    `Connected to server: ${host} on port ${port}\nSending some data...\nConnection closed.\n`;

  const REPLIES: [what: string, reply: string, fault: string][] = [
    ['a reply that ends early', 'Hello', 'server closed after 5 of 12 bytes'],
    ['a reply of one byte', 'H', 'server closed after 1 of 12 bytes'],
    ['a reply of other bytes', 'Hello world!', 'the reply differs from the message'],
    ['a reply with more after it', 'Hello World! Hello!', 'server sent more than the 12 bytes of the message'],
  ];
  for (const [what, reply, fault] of REPLIES) {
    test(`${what} is printed, and ends with status 1`, LIMIT, async (t) => {
      const port = await listen(t, (connection) => connection.once('data', () => connection.end(reply)));
      assert.deepEqual(await run(t, client(port)), {
        status: 1, stderr: `client.ts: ${fault}\n`, stdout: conversation(port, reply),
      });
    });
  }

  test('a server that closes without a reply ends the client with status 1', LIMIT, async (t) => {
    const port = await listen(t, (connection) => connection.resume().end());
    assert.deepEqual(await run(t, client(port)), {
      status: 1, stderr: 'client.ts: server closed after 0 of 12 bytes\n', stdout: noReply(port),
    });
  });

  test('a server that closes during a long message is one fault', LIMIT, async (t) => {
    const port = await listen(t, (connection) => connection.end());
    const { status, stderr } = await run(t, client(port, 'x'.repeat(120_000)));
    assert.equal(status, 1);
    assert.match(stderr, /^client\.ts: [^\n]+\n$/);
  });

  test('a server that closes and reads nothing of a long message is left', needsNetwork, async (t) => {
    // Sockets that hold little, so that the client cannot send all. The server accepts, and sends its FIN.
    const setup = `
      echo 4096 4096 4096 | tee /proc/sys/net/ipv4/tcp_rmem > /proc/sys/net/ipv4/tcp_wmem
      ${listenAt([80], 'here', '{ allowHalfOpen: true, pauseOnConnect: true }, (connection) => connection.end()')}`;
    const talk = inNetwork(setup, node('client.ts', '127.0.0.1', '80', 'x'.repeat(120_000)));
    assert.deepEqual(await run(t, talk), {
      status: 1, stderr: 'client.ts: server closed after 0 of 120000 bytes\n', stdout: noReply(80),
    });
  });

  test('a reply that differs from the message in bytes, but not in how they look, is noticed', LIMIT, async (t) => {
    const bytes = Buffer.from('f09f98', 'hex'); // a character that is cut off shows as U+FFFD
    const port = await listen(t, (connection) => connection.once('data', () => connection.end(bytes)));
    const { status, stdout } = await run(t, client(port, '\ufffd'));
    assert.deepEqual({ status, stdout }, { status: 1, stdout: conversation(port, '\ufffd') });
  });

  test('what comes after the right reply is printed too, and ends with status 1', LIMIT, async (t) => {
    const port = await listen(t, (connection) => {
      connection.once('data', (message) => connection.write(message));
      connection.on('end', () => connection.end('Hello World!')); // even if it is the same once more
    });
    assert.deepEqual(await run(t, client(port)), {
      status: 1,
      stderr: 'client.ts: server sent more than the 12 bytes of the message\n',
      stdout: conversation(port, 'Hello World!\nResponse from server: Hello World!'),
    });
  });

  test('an answer to an empty message is printed, and ends with status 1', LIMIT, async (t) => {
    const port = await listen(t, (connection) => connection.on('end', () => connection.end('?')).resume());
    assert.deepEqual(await run(t, client(port, '')), {
      status: 1,
      stderr: 'client.ts: server sent more than the 0 bytes of the message\n',
      stdout: conversation(port, '\nResponse from server: ?'),
    });
  });

  test('a server that never stops sending is left', LIMIT, async (t) => {
    const port = await listen(t, (connection) => {
      const send = () => { while (connection.writable && connection.write(Buffer.alloc(1 << 16, 'x'))); };
      connection.on('drain', send);
      send();
    });
    const { status, stdout, stderr } = await run(t, client(port));
    assert.deepEqual({ status, stderr }, {
      status: 1, stderr: 'client.ts: server sent more than the 12 bytes of the message\n',
    });
    assert.match(stdout, /\nResponse from server: x{12,65536}\nConnection closed\.\n$/);
  });

  test('control characters in the reply, except newline and tab, are escaped', LIMIT, async (t) => {
    const port = await listen(t, documentedServer);
    const message = '\x01\x07\b\t\v\f\r\x1b[31m\x1f \x7e\x7f\x80\x9b\x9f\xa0\n.'; // C0, DEL, C1 and their neighbours
    assert.deepEqual(await run(t, client(port, message)), {
      status: 0,
      stderr: '',
      stdout: conversation(port, '\\x01\\x07\\x08\t\\x0b\\x0c\\x0d\\x1b[31m\\x1f ~\\x7f\\x80\\x9b\\x9f\xa0\n.'),
    });
  });

  // On a single core, all at once would be so much that clients of other tests wait for more than 10 s.
  describe('patience', { concurrency: 6 }, () => {
    const silent = (port: number, host = '127.0.0.1') => `client.ts: nothing came from ${host} port ${port} for 10 s\n`;

    test('a silent server times out', LIMIT, async (t) => {
      const port = await listen(t, (connection) => connection.resume());
      assert.deepEqual(await run(t, client(port)), { status: 1, stderr: silent(port), stdout: noReply(port) });
    });

    test('a server that falls silent during the reply times out, and what came is printed', LIMIT, async (t) => {
      const port = await listen(t, (connection) => connection.once('data', () => connection.write('Hello')));
      assert.deepEqual(await run(t, client(port)), {
        status: 1, stderr: silent(port), stdout: conversation(port, 'Hello'),
      });
    });

    test('a host that drops packets times out', needsNetwork, async (t) => {
      const talk = inNetwork(rule('80', 'DROP'), node('client.ts', TARGET, '80'));
      assert.deepEqual(await run(t, talk), { status: 1, stderr: silent(80, TARGET), stdout: '' });
    });

    test('a slow server that answers something within each 10 s is waited for', LIMIT, async (t) => {
      const { port, connection } = await accepted(t);
      const talk = start(t, client(port));
      const server = (await connection).resume();
      for (const piece of ['Hello', ' World']) {
        server.write(piece);
        await setTimeout(6000);
      }
      server.end('!');
      assert.deepEqual(await talk.ended, success(port));
    });

    const UNTIL_TOO_LATE = 10_500; // milliseconds: the client has waited for more than 10 s when it goes on

    test('a reply that came in time counts, even if the client was suspended', LIMIT, async (t) => {
      const { port, talk, server } = await suspended(t);
      server.write('Hello');
      await setTimeout(UNTIL_TOO_LATE);
      talk.process.kill('SIGCONT');
      await setTimeout(500); // a client that had timed out would be gone within this time
      server.end(' World!');
      assert.deepEqual(await talk.ended, success(port));
    });

    test('a server that falls silent while the client is suspended times out', LIMIT, async (t) => {
      const { port, talk, server } = await suspended(t);
      server.write('Hello');
      await setTimeout(UNTIL_TOO_LATE);
      talk.process.kill('SIGCONT');
      assert.deepEqual(await talk.ended, { status: 1, stderr: silent(port), stdout: conversation(port, 'Hello') });
    });

    test('a server that replies while the client is suspended and does not close is left', LIMIT, async (t) => {
      const { port, talk, server } = await suspended(t);
      server.write('Hello World!');
      await setTimeout(UNTIL_TOO_LATE);
      talk.process.kill('SIGCONT');
      assert.deepEqual(await talk.ended, success(port));
    });

    const needsNameServer = { ...LIMIT, skip: noSilentNameServer() };
    test('the time-out begins with the connection attempt, not with the look-up', needsNameServer, async (t) => {
      assert.deepEqual(await run(t, withSilentNameServer(node('client.ts', 'example.test', '80'))), {
        status: 1, stdout: '', stderr: 'client.ts: connection to example.test port 80 failed (EAI_AGAIN)\n',
      });
    });

    test('a connection that came in time counts, even if the client was suspended', needsStrace, async (t) => {
      const port = await listen(t, documentedServer);
      assert.deepEqual(await run(t, strace('connect', 'delay_exit=11000000', client(port))), success(port));
    });

    test('a server that has sent the reply and does not close is left', LIMIT, async (t) => {
      const port = await listen(t, (connection) => connection.on('data', (message) => connection.write(message)));
      assert.deepEqual(await run(t, client(port)), success(port));
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

  test('a reset after part of the reply is told from a close, even if the client was suspended', LIMIT, async (t) => {
    const { port, talk, server } = await suspended(t);
    server.write('Hello');
    await setTimeout(200); // so that the bytes leave before the RST
    server.resetAndDestroy();
    await setTimeout(200);
    talk.process.kill('SIGCONT');
    assert.deepEqual(await talk.ended, {
      status: 1,
      stderr: `client.ts: connection to 127.0.0.1 port ${port} failed (ECONNRESET)\n`,
      stdout: conversation(port, 'Hello'),
    });
  });

  test('a server that resets once the client has the reply does no harm', LIMIT, async (t) => {
    const port = await listen(t, (connection) => {
      connection.once('data', (message) => connection.write(message));
      connection.on('end', () => connection.resetAndDestroy());
    });
    assert.deepEqual(await run(t, client(port)), success(port));
  });

  test('what came before a fault reaches a slow reader', LIMIT, async (t) => {
    const bytes = '\x1b'.repeat(120_000); // printed as \x1b, this is more than a pipe holds
    const port = await listen(t, (connection) => connection.resume().end(bytes));
    const talk = start(t, client(port, `${bytes}.`));
    talk.process.stdout?.pause();
    await reported(talk);
    await setTimeout(300);
    talk.process.stdout?.resume();
    const { status, stdout } = await talk.ended;
    assert.equal(status, 1);
    assert.equal(stdout, conversation(port, '\\x1b'.repeat(120_000)));
  });

  test('a disk that is full is an error with its code', { ...LIMIT, skip: noFullDisk() }, async (t) => {
    const port = await listen(t, documentedServer);
    assert.deepEqual(await run(t, onFullDisk(client(port))), {
      status: 1, stdout: '', stderr: 'client.ts: cannot print (ENOSPC)\n',
    });
  });

  test('a refused connection is an error with host, port and code', LIMIT, async (t) => {
    for (const port of [1, 65535, await closedPort()]) {
      assert.deepEqual(await run(t, client(port)), {
        status: 1, stdout: '', stderr: `client.ts: connection to 127.0.0.1 port ${port} failed (ECONNREFUSED)\n`,
      });
    }
  });

  const needsLoopback = { ...LIMIT, skip: cannotRun(...selfConnecting(['true'])) };
  test('a connection that TCP makes with itself is a refused one', needsLoopback, async (t) => {
    assert.deepEqual(await run(t, selfConnecting(node('client.ts'))), {
      status: 1,
      stdout: '',
      stderr: 'client.ts: connection to localhost port 54321 failed (ECONNREFUSED): '
        + 'nobody listens, TCP connected it to itself\n',
    });
  });

  test('a connection without addresses is none with itself', LIMIT, async (t) => {
    // The system tells none if the server resets in the moment after connect().
    const code = `const { prototype } = require('net').Socket;
      prototype._getsockname = prototype._getpeername = () => ({});`;
    const port = await listen(t, documentedServer);
    assert.deepEqual(await run(t, client(port), preload(t, code)), success(port));
  });

  const UNEXPECTED: Record<string, string> = {
    'between two calls': 'Buffer.prototype.equals = () => { throw new TypeError("out of order"); }',
    'in a callback': `require("net").Socket.prototype.connect = () => setImmediate(() => {
      throw new TypeError("out of order");
    });`,
  };
  for (const [where, code] of Object.entries(UNEXPECTED)) {
    test(`an unexpected exception ${where} is one line on stderr, and status 1`, LIMIT, async (t) => {
      const port = await listen(t, documentedServer);
      const { status, stderr } = await run(t, client(port), preload(t, code));
      assert.deepEqual({ status, stderr }, { status: 1, stderr: 'client.ts: out of order\n' });
    });
  }

  test('a host that cannot be reached is an error with host, port and code', needsNetwork, async (t) => {
    assert.deepEqual(await run(t, inNetwork(QUICK_ARP, node('client.ts', NOBODY, '80'))), {
      status: 1, stdout: '', stderr: `client.ts: connection to ${NOBODY} port 80 failed (EHOSTUNREACH)\n`,
    });
  });

  test('a host that does not resolve is an error with host, port and code', LIMIT, async (t) => {
    const host = `${'x'.repeat(64)}.test`; // a label of 64 characters is refused before any name server is asked
    assert.deepEqual(await run(t, node('client.ts', host, '80')), {
      status: 1, stdout: '', stderr: `client.ts: connection to ${host} port 80 failed (ENOTFOUND)\n`,
    });
  });

  test('the connection is closed when the server has closed its side too', LIMIT, async (t) => {
    const { port, connection } = await accepted(t);
    const talk = start(t, client(port));
    const server = await connection;
    server.write('Hello World!');
    await receiveAll(server);
    // A client that does not wait for our FIN would be gone within this time.
    assert.equal(await Promise.race([talk.ended, setTimeout(500, 'still there')]), 'still there');
    server.end();
    assert.deepEqual(await talk.ended, success(port));
  });

  test('a closed stdout does not break the conversation', LIMIT, async (t) => {
    const { port, connection } = await accepted(t);
    const talk = start(t, client(port));
    talk.process.stdout?.destroy();
    const server = await connection;
    server.write('Hello World!');
    assert.equal(String(await receiveAll(server)), 'Hello World!'); // up to EOF: it would reject at a reset
    server.end();
    assert.deepEqual(await talk.ended, { status: 0, stdout: '', stderr: '' });
  });

  const SERVERS: [program: string, commandLine: (port: number) => string, skip: string | false][] = [
    ['nc', (port) => `mkfifo "$0/loop" && nc -v -l -N 127.0.0.1 ${port} < "$0/loop" | tee "$0/loop"`, noNc()],
    ['ncat', (port) => `exec ncat -v -l 127.0.0.1 ${port} --exec /bin/cat`, cannotRun('ncat', '--version')],
    ['socat', (port) => `exec socat -d -d TCP-LISTEN:${port},bind=127.0.0.1 EXEC:cat`, cannotRun('socat', '-V')],
  ];
  for (const [program, commandLine, skip] of SERVERS) {
    test(`the client talks with an echo server made of ${program}`, { ...LIMIT, skip }, async (t) => {
      const port = await closedPort();
      const server = start(t, ['sh', '-c', `exec 2>&1; ${commandLine(port)}`, scratch(t)]);
      await server.printed(/listening on/i);
      const message = 'añ€😀'.repeat(1000);
      const { status, stdout, stderr } = await run(t, client(port, message));
      assert.deepEqual({ status, stderr }, { status: 0, stderr: '' });
      assert.equal(stdout, conversation(port, message));
    });
  }

  const WRONG: [string[], string][] = [
    ...['', 'abc', '0', '65536', '1e3', '80.5', ' 80', '12345678901234567890'].map(
      (port): [string[], string] => [['localhost', port], `port "${port}" is not a whole number from 1 to 65535`],
    ),
    [[''], 'host "" is neither a name nor an address'],
    [['localhost', '80', 'message', 'more'], 'unexpected argument "more"'],
    [['--bogus'], 'unknown option "--bogus"'],
  ];
  for (const [args, message] of WRONG) {
    test(`client.ts ${args.join(' ')}: ${message}`, LIMIT, async (t) => {
      assert.deepEqual(await run(t, node('client.ts', ...args)), {
        status: 2, stdout: '', stderr: `client.ts: ${message}\nUsage: npx ts-node client.ts [host] [port] [message]\n`,
      });
    });
  }

  for (const option of ['-h', '--help']) {
    test(`client.ts ${option} prints the usage`, LIMIT, async (t) => {
      const { status, stdout, stderr } = await run(t, node('client.ts', option));
      assert.match(stdout, /^Usage: npx ts-node client\.ts \[host\] \[port\] \[message\]\n/);
      for (const listed of ['default: localhost', '1 to 65535 (default: 54321)', 'default: Hello World!']) {
        assert.ok(stdout.includes(listed), listed);
      }
      assert.deepEqual({ status, stderr }, { status: 0, stderr: '' });
    });
  }
});
