import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import {
  inNetwork, NOBODY, noNetwork, noSilentNameServer, rule, TARGET, withSilentNameServer,
} from './network';
import { accepted, closedPort, documentedServer, listen, preload, receiveAll } from './peers';
import {
  cannotRun, LIMIT, noFullDisk, noIPv6, noNc, npx, run, start, startServer, node, unshare,
} from './scripts';

const client = (port: number, ...message: string[]) => node('client.ts', '127.0.0.1', `${port}`, ...message);

const needsStrace = { ...LIMIT, skip: cannotRun('strace', '-f', 'true') };
const needsNetwork = { ...LIMIT, skip: noNetwork() };

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
  const { port, connection } = await accepted(t);
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
  assert.deepEqual(await run(t, node('client.ts', '::1', `${port}`)), {
    status: 0, stderr: '', stdout: conversation(port, 'Hello World!', '::1'),
  });
});

/** What the client prints when nothing comes back from port. */
const noReply = (port: number, host = '127.0.0.1') =>
  `Connected to server: ${host} on port ${port}\nSending some data...\nConnection closed.\n`;

const REPLIES: [what: string, reply: string, fault: string][] = [
  ['a reply that ends early', 'Hello', 'server closed after 5 of 12 bytes'],
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

test('a server that closes amid a long message is one fault', LIMIT, async (t) => {
  const port = await listen(t, (connection) => connection.end());
  const { status, stderr } = await run(t, client(port, 'x'.repeat(120_000)));
  assert.equal(status, 1);
  assert.match(stderr, /^client\.ts: [^\n]+\n$/);
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

test('control characters in the reply, save newline and tab, are made visible', LIMIT, async (t) => {
  const port = await listen(t, documentedServer);
  const message = '\x01\x07\b\t\v\f\r\x1b[31m\x1f \x7e\x7f\x80\x9b\x9f\xa0\n.'; // C0, DEL, C1 and their neighbours
  assert.deepEqual(await run(t, client(port, message)), {
    status: 0,
    stderr: '',
    stdout: conversation(port, '\\x01\\x07\\x08\t\\x0b\\x0c\\x0d\\x1b[31m\\x1f ~\\x7f\\x80\\x9b\\x9f\xa0\n.'),
  });
});

describe('patience', { concurrency: true }, () => {
  const silent = (port: number, host = '127.0.0.1') => `client.ts: nothing came from ${host} port ${port} for 10 s\n`;

  test('a server that says nothing is given up', LIMIT, async (t) => {
    const port = await listen(t, (connection) => connection.resume());
    assert.deepEqual(await run(t, client(port)), { status: 1, stderr: silent(port), stdout: noReply(port) });
  });

  test('a server that falls silent amid the reply is given up, and what came is printed', LIMIT, async (t) => {
    const port = await listen(t, (connection) => connection.once('data', () => connection.write('Hello')));
    assert.deepEqual(await run(t, client(port)), {
      status: 1, stderr: silent(port), stdout: conversation(port, 'Hello'),
    });
  });

  test('a host that drops packets is given up', needsNetwork, async (t) => {
    const talk = inNetwork(rule('80', 'DROP'), node('client.ts', TARGET, '80'));
    assert.deepEqual(await run(t, talk), { status: 1, stderr: silent(80, TARGET), stdout: '' });
  });

  test('a slow server that answers something within each 10 s is waited for', LIMIT, async (t) => {
    const port = await listen(t, (connection) => connection.once('data', async () => {
      for (const piece of ['Hello', ' World']) {
        connection.write(piece);
        await setTimeout(6000);
      }
      connection.end('!');
    }));
    assert.deepEqual(await run(t, client(port)), { status: 0, stderr: '', stdout: conversation(port, 'Hello World!') });
  });

  test('a reply that came in time counts, even if the client was stopped for long', LIMIT, async (t) => {
    const { port, connection } = await accepted(t);
    const talk = start(t, client(port));
    await talk.printed(/Sending/);
    await setTimeout(500); // so that it waits for the reply by now
    talk.process.kill('SIGSTOP');
    await setTimeout(500);
    (await connection).write('Hello');
    await setTimeout(11_000);
    talk.process.kill('SIGCONT');
    await setTimeout(500); // a client that had given up would be gone within this time
    (await connection).end(' World!');
    assert.deepEqual(await talk.ended, { status: 0, stderr: '', stdout: conversation(port, 'Hello World!') });
  });

  const SUSPENDED = { timeout: 60_000 };
  test('a server that falls silent while the client is suspended is given up', SUSPENDED, async (t) => {
    const { port, connection } = await accepted(t);
    const talk = start(t, client(port));
    await talk.printed(/Sending/);
    await setTimeout(500); // so that it waits for the reply by now
    talk.process.kill('SIGSTOP');
    await setTimeout(500);
    (await connection).resume().write('Hello');
    await setTimeout(11_000);
    talk.process.kill('SIGCONT');
    assert.deepEqual(await talk.ended, { status: 1, stderr: silent(port), stdout: conversation(port, 'Hello') });
  });

  test('a server that replies while the client is suspended and does not close is left', SUSPENDED, async (t) => {
    const { port, connection } = await accepted(t);
    const talk = start(t, client(port));
    await talk.printed(/Sending/);
    await setTimeout(500); // so that it waits for the reply by now
    talk.process.kill('SIGSTOP');
    await setTimeout(500);
    (await connection).resume().write('Hello World!');
    await setTimeout(11_000);
    talk.process.kill('SIGCONT');
    assert.deepEqual(await talk.ended, { status: 0, stderr: '', stdout: conversation(port, 'Hello World!') });
  });

  const skip = noSilentNameServer();
  test('the time-out begins with the connection attempt, not with the look-up', { ...SUSPENDED, skip }, async (t) => {
    assert.deepEqual(await run(t, withSilentNameServer(node('client.ts', 'example.test', '80'))), {
      status: 1, stdout: '', stderr: 'client.ts: connection to example.test port 80 failed (EAI_AGAIN)\n',
    });
  });

  test('a connection that came in time counts, even if the client was stopped for long', needsStrace, async (t) => {
    const port = await listen(t, documentedServer);
    const stopped = ['strace', '-f', '-qq', '-o', '/dev/null', '-e', 'inject=connect:delay_exit=11000000'];
    assert.deepEqual(await run(t, [...stopped, ...client(port)]), {
      status: 0, stderr: '', stdout: conversation(port, 'Hello World!'),
    });
  });

  test('a server that has sent the reply and does not close is left', LIMIT, async (t) => {
    const port = await listen(t, (connection) => connection.on('data', (message) => connection.write(message)));
    assert.deepEqual(await run(t, client(port)), { status: 0, stderr: '', stdout: conversation(port, 'Hello World!') });
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

test('a reset after a part of the reply is told from a close, even if the client was suspended', LIMIT, async (t) => {
  const { port, connection } = await accepted(t);
  const talk = start(t, client(port));
  await talk.printed(/Sending/);
  talk.process.kill('SIGSTOP');
  (await connection).resume().write('Hello', async () => {
    await setTimeout(200); // so that the bytes leave before the RST
    (await connection).resetAndDestroy();
    await setTimeout(200);
    talk.process.kill('SIGCONT');
  });
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
  assert.deepEqual(await run(t, client(port)), { status: 0, stderr: '', stdout: conversation(port, 'Hello World!') });
});

test('what came before a fault reaches a slow reader', LIMIT, async (t) => {
  const bytes = '\x1b'.repeat(120_000); // printed as \x1b, this is more than a pipe holds
  const port = await listen(t, (connection) => connection.resume().end(bytes));
  const talk = start(t, client(port, `${bytes}.`));
  talk.process.stdout?.pause();
  await new Promise((resolve) => talk.process.stderr?.once('data', resolve));
  await setTimeout(300);
  talk.process.stdout?.resume();
  const { status, stdout } = await talk.ended;
  assert.equal(status, 1);
  assert.equal(stdout, conversation(port, '\\x1b'.repeat(120_000)));
});

test('a disk that is full is an error with its code', { ...LIMIT, skip: noFullDisk() }, async (t) => {
  const port = await listen(t, documentedServer);
  assert.deepEqual(await run(t, ['sh', '-c', 'exec "$@" > /dev/full', 'sh', ...client(port)]), {
    status: 1, stdout: '', stderr: 'client.ts: cannot print (ENOSPC)\n',
  });
});

test('a refused connection is an error with host, port and code', LIMIT, async (t) => {
  const port = await closedPort();
  assert.deepEqual(await run(t, client(port)), {
    status: 1, stdout: '', stderr: `client.ts: connection to 127.0.0.1 port ${port} failed (ECONNREFUSED)\n`,
  });
});

const needsLoopback = { ...LIMIT, skip: cannotRun(...unshare('--net'), 'ip', 'link', 'set', 'lo', 'up') };
test('a connection that TCP makes with itself is a refused one', needsLoopback, async (t) => {
  // A network namespace in which 54321 is the one port that the system can choose as the local one.
  const pinned = 'ip link set lo up && echo 54321 54321 > /proc/sys/net/ipv4/ip_local_port_range && exec "$@"';
  assert.deepEqual(await run(t, [...unshare('--net'), 'sh', '-c', pinned, 'sh', ...node('client.ts')]), {
    status: 1,
    stdout: '',
    stderr: 'client.ts: connection to localhost port 54321 failed (ECONNREFUSED): '
      + 'nobody listens, TCP connected it to itself\n',
  });
});

test('an unexpected exception is one line on stderr, and ends the client with status 1', LIMIT, async (t) => {
  const port = await listen(t, documentedServer);
  const code = 'Buffer.prototype.equals = () => { throw new TypeError("out of order"); }';
  const { status, stderr } = await run(t, client(port), preload(t, code));
  assert.deepEqual({ status, stderr }, { status: 1, stderr: 'client.ts: out of order\n' });
});

test('a host that cannot be reached is an error with host, port and code', needsNetwork, async (t) => {
  const setup = 'echo 50 > /proc/sys/net/ipv4/neigh/scanner/retrans_time_ms'; // ARP gives up after 3 times this
  assert.deepEqual(await run(t, inNetwork(setup, node('client.ts', NOBODY, '80'))), {
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
  (await connection).write('Hello World!');
  await receiveAll(await connection);
  // A client that does not wait for our FIN would be gone within this time.
  assert.equal(await Promise.race([talk.ended, setTimeout(500, 'still there')]), 'still there');
  (await connection).end();
  assert.deepEqual(await talk.ended, { status: 0, stderr: '', stdout: conversation(port, 'Hello World!') });
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

const SERVERS: [program: string, commandLine: (port: number) => string, skip: string | false][] = [
  ['nc', (port) => `mkfifo "$0/loop" && nc -v -l -N 127.0.0.1 ${port} < "$0/loop" | tee "$0/loop"`, noNc()],
  ['ncat', (port) => `exec ncat -v -l 127.0.0.1 ${port} --exec /bin/cat`, cannotRun('ncat', '--version')],
  ['socat', (port) => `exec socat -d -d TCP-LISTEN:${port},bind=127.0.0.1 EXEC:cat`, cannotRun('socat', '-V')],
];
for (const [program, commandLine, skip] of SERVERS) {
  test(`the client talks with an echo server made of ${program}`, { ...LIMIT, skip }, async (t) => {
    const port = await closedPort();
    const folder = mkdtempSync(join(tmpdir(), 'echo-'));
    t.after(() => rmSync(folder, { recursive: true }));
    const server = start(t, ['sh', '-c', `exec 2>&1; ${commandLine(port)}`, folder]);
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
describe('wrong usage', { concurrency: 4 }, () => {
  for (const [args, message] of WRONG) {
    test(`client.ts ${args.join(' ')}: ${message}`, LIMIT, async (t) => {
      assert.deepEqual(await run(t, node('client.ts', ...args)), {
        status: 2, stdout: '', stderr: `client.ts: ${message}\nUsage: npx ts-node client.ts [host] [port] [message]\n`,
      });
    });
  }
});

for (const option of ['-h', '--help']) {
  test(`client.ts ${option} prints the usage`, LIMIT, async (t) => {
    const { status, stdout, stderr } = await run(t, node('client.ts', option));
    assert.match(stdout, /^Usage: npx ts-node client\.ts \[host\] \[port\] \[message\]\n/);
    assert.deepEqual({ status, stderr }, { status: 0, stderr: '' });
  });
}
