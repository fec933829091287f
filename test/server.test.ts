import assert from 'node:assert/strict';
import { once } from 'node:events';
import { existsSync, readFileSync } from 'node:fs';
import type { Socket } from 'node:net';
import { describe, test, type TestContext } from 'node:test';
import { setImmediate, setTimeout } from 'node:timers/promises';
import { noSilentNameServer, withSilentNameServer } from './network';
import { closedPort, dial, listen, preload, receiveAll } from './peers';
import {
  cannotRun, inState, LIMIT, node, noFullDisk, noIPv6, noNc, noPeakMemory, noResetBeforeAccept, noSecondInBacklog,
  noSecondLoopback, npx, onFullDisk, peakMemory, reported, run, type Running, start, startServer, unshare,
} from './scripts';

const RECEIVED = 'Received following data: ';

/** What the server printed of the data alone, one string a receive. */
const receives = (stdout: string) =>
  stdout.split('\n').filter((line) => line.startsWith(RECEIVED)).map((line) => line.slice(RECEIVED.length));

/** Connects to a server that says nothing when it listens. */
async function dialLate(t: TestContext, port: number): Promise<Socket> {
  for (;;) {
    const socket = await dial(t, port).catch(() => undefined);
    if (socket) return socket;
    await setTimeout(20);
  }
}

/** Offers that many bytes to the other side, and resolves to how many were taken when no more are taken. */
async function takenOf(client: Socket, offered: number): Promise<number> {
  const piece = Buffer.alloc(1 << 16, 'Hello World! ');
  let taken = 0;
  for (let start = 0; start < offered; start += piece.length) client.write(piece, () => { taken += piece.length; });
  for (let before = -1; taken > before;) {
    before = taken;
    await setTimeout(1000); // nothing was taken for that long
  }
  return taken;
}

/** Stops reading what the server prints, and has the client send until stdout takes no more. Resolves to the bytes. */
async function blockStdout(server: Running, client: Socket): Promise<number> {
  server.process.stdout?.pause();
  let sent = 0;
  let echoed = 0;
  let allBack = () => {};
  client.on('data', (data) => {
    echoed += data.length;
    if (echoed === sent) allBack();
  });
  do {
    client.write('\x1b'.repeat(1000));
    sent += 1000;
    await Promise.race([new Promise<void>((resolve) => { allBack = resolve; }), setTimeout(1000)]);
  } while (echoed === sent);
  return sent;
}

/** Resolves to the exit status, even if nobody has read all of stdout. */
const exited = ({ process }: Running) => new Promise<number | null>((resolve) => process.once('exit', resolve));

/** A linear congruential generator: whole numbers from 0 to below the bound, the same for the same seed. */
function randomFrom(seed: number): (bound: number) => number {
  let state = seed >>> 0;
  return (bound) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0; // the constants of Numerical Recipes
    return Math.floor((state / 2 ** 32) * bound);
  };
}

/** The environment of a server that waits at a signal for ten minutes, not for a second, until stdout is read. */
const patient = (t: TestContext) =>
  preload(t, 'const start = setTimeout; globalThis.setTimeout = (then, time) => start(then, 600 * time);');

const BYE = /^Server is shutting down\. Bye!$/gm;

describe('server.ts', { concurrency: 4 }, () => {
  test('an empty host is every IPv4 address, shown as 0.0.0.0', { ...LIMIT, skip: noSecondLoopback() }, async (t) => {
    const { server, port } = await startServer(t, '');
    (await dial(t, port, '127.0.0.2')).end();
    const { stdout } = await server.ended;
    assert.match(stdout, new RegExp(`^Server started on 0\\.0\\.0\\.0, listening on TCP port ${port}\n`));
    assert.match(stdout, /\nIncoming connection from 127\.0\.0\.[12]:\d+\.\.\.\n/);
  });

  test('port 0 lets the system choose, and the port it chose is shown', LIMIT, async (t) => {
    const { server, port } = await startServer(t, 'localhost');
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
    const { server, port } = await startServer(t, '::1');
    const client = await dial(t, port, '::1');
    const { localPort } = client;
    client.end();
    const { stdout } = await server.ended;
    assert.match(stdout, new RegExp(`\nIncoming connection from \\[::1\\]:${localPort}\\.\\.\\.\n`));
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
    const { server, port } = await startServer(t);
    server.process.stdout?.destroy(); // or the test would keep all that is printed
    const client = await dial(t, port);
    const memory = peakMemory(server.process);
    const offered = 100 << 20; // far more bytes than the kernel buffers on the way
    assert.ok(await takenOf(client, offered) < offered, 'the server took all of it');
    const grown = peakMemory(server.process) - memory;
    assert.ok(grown < 64 << 20, `it grew by ${grown} bytes`);
    let echoed = 0;
    client.on('data', (data) => { echoed += data.length; }).end();
    await once(client, 'end');
    assert.equal(echoed, offered);
    await server.ended;
  });

  const needsPeakMemory = { ...LIMIT, skip: noPeakMemory() };
  test('memory stays flat while 160 MiB are echoed', needsPeakMemory, async (t) => {
    const { server, port } = await startServer(t);
    server.process.stdout?.destroy(); // or the test would keep all that is printed
    const client = await dial(t, port);
    let echoed = 0;
    client.on('data', (data) => { echoed += data.length; });
    const piece = Buffer.alloc(1 << 20, 'Hello World!\n');
    let memory = 0;
    const total = 160 << 20;
    for (let sent = 0; sent < total; sent += piece.length) {
      if (sent === 32 << 20) memory = peakMemory(server.process); // by now it has what it needs
      if (!client.write(piece)) await once(client, 'drain');
    }
    client.end();
    await once(client, 'end');
    assert.equal(echoed, total);
    const grown = peakMemory(server.process) - memory;
    assert.ok(grown < 32 << 20, `it grew by ${grown} bytes`);
  });

  test('a client is held back as long as nobody reads what the server prints', LIMIT, async (t) => {
    const { server, port } = await startServer(t);
    server.process.stdout?.pause();
    const client = (await dial(t, port)).resume();
    const memory = peakMemory(server.process);
    const offered = 100 << 20;
    assert.ok(await takenOf(client, offered) < offered, 'the server took all of it');
    const grown = peakMemory(server.process) - memory;
    assert.ok(grown < 64 << 20, `it grew by ${grown} bytes`);
  });

  test('what is not printed yet at EOF is sent back all the same', LIMIT, async (t) => {
    const { server, port } = await startServer(t);
    const client = await dial(t, port);
    const echoed = receiveAll(client);
    const sent = await blockStdout(server, client);
    client.end();
    await setTimeout(300); // so that the EOF reaches the server
    server.process.stdout?.resume();
    assert.equal((await echoed).length, sent);
    assert.equal((await server.ended).stderr, '');
  });

  test('a receive holds at most 1,024 bytes', LIMIT, async (t) => {
    const { server, port } = await startServer(t);
    (await dial(t, port)).end('x'.repeat(5000));
    const lines = receives((await server.ended).stdout);
    assert.ok(lines.every((line) => line.length <= 1024), `lines of ${lines.map((line) => line.length).join()} bytes`);
    assert.equal(lines.join(''), 'x'.repeat(5000));
  });

  test('what each receive held is printed and sent back before the client sends more', LIMIT, async (t) => {
    const { server, port } = await startServer(t);
    const client = await dial(t, port);
    for (const message of ['one', 'two', 'three']) {
      client.write(message);
      const [echo] = await once(client, 'data') as [Buffer];
      assert.equal(String(echo), message);
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

  test('a byte order mark and invalid UTF-8 are printed too', LIMIT, async (t) => {
    const { server, port } = await startServer(t);
    (await dial(t, port)).end(Buffer.from('efbbbf61ff62e282', 'hex')); // it ends in the middle of a €
    assert.equal(receives((await server.ended).stdout).join(''), '\ufeffa\ufffdb\ufffd');
  });

  test('control characters except newline and tab are escaped, and come back as they were', LIMIT, async (t) => {
    const { server, port } = await startServer(t);
    const client = await dial(t, port);
    const echoed = receiveAll(client);
    const sent = '\0\x07\b\t\v\f\r\x1b[31m\x1f \x7e\x7f\x80\x9b\x9f\xa0\n.'; // C0, DEL, C1 and their neighbours
    client.end(sent);
    assert.equal(String(await echoed), sent);
    assert.ok((await server.ended).stdout.includes(
      `${RECEIVED}\\x00\\x07\\x08\t\\x0b\\x0c\\x0d\\x1b[31m\\x1f ~\\x7f\\x80\\x9b\\x9f\xa0\n.\n`,
    ));
  });

  test('a receive that completes no character prints no line', LIMIT, async (t) => {
    const { server, port } = await startServer(t);
    const client = await dial(t, port);
    for (const byte of Buffer.from('€')) {
      client.write(Buffer.of(byte));
      await once(client, 'data'); // so each byte is received by itself
    }
    client.end();
    assert.deepEqual(receives((await server.ended).stdout), ['€']);
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

  const backlogHoldsTwo = { ...LIMIT, skip: noSecondInBacklog() };
  test('a second client that waits in the backlog is not accepted', backlogHoldsTwo, async (t) => {
    const { server, port } = await startServer(t);
    server.process.kill('SIGSTOP'); // both connections stand before the server can accept one
    await inState(server.process, 'T');
    const first = await dial(t, port);
    const second = await dial(t, port);
    server.process.kill('SIGCONT');
    await assert.rejects(once(second, 'close'), { code: 'ECONNRESET' });
    first.end('the first');
    const { stdout } = await server.ended;
    assert.equal(stdout.match(/Incoming connection/g)?.length, 1);
    assert.deepEqual(receives(stdout), ['the first']);
  });

  const RESETS: Record<string, (client: Socket, server: Running) => Promise<unknown>> = {
    'before it sends': (_client, server) => server.printed(/Incoming connection/),
    'while its bytes are on the way': async (client) => {
      for (let piece = 0; piece < 1000; piece++) client.write('x'.repeat(1000));
      await once(client, 'data');
    },
    'with the echo unread': async (client, server) => {
      client.pause().write('Hello World!');
      await server.printed(/Hello World!/);
    },
    'while it is held back': (client) => takenOf(client, 64 << 20),
    'after its EOF, with the echo on the way': async (client, server) => {
      client.pause().end('x'.repeat(16 << 20)); // more bytes than the kernel buffers on the way back
      await server.printed(/x/);
    },
  };
  for (const [when, prepare] of Object.entries(RESETS)) {
    test(`a client that resets ${when} ends the server with status 1 and one line on stderr`, LIMIT, async (t) => {
      const { server, port } = await startServer(t);
      const client = await dial(t, port);
      await prepare(client, server);
      client.resetAndDestroy();
      const { status, stdout, stderr } = await server.ended;
      assert.equal(status, 1);
      assert.match(stderr, /^server\.ts: connection lost \((ECONNRESET|EPIPE)\)\n$/);
      assert.match(stdout, /\nServer is shutting down\. Bye!\n$/);
    });
  }

  test('a client that resets once it has its echo back and the EOF ends the server in order', LIMIT, async (t) => {
    const { server, port } = await startServer(t);
    const client = await dial(t, port);
    client.end('Hello World!');
    await receiveAll(client);
    client.resetAndDestroy();
    const { status, stderr } = await server.ended;
    assert.deepEqual({ status, stderr }, { status: 0, stderr: '' });
  });

  const seesReset = { ...LIMIT, skip: noResetBeforeAccept() };
  test('a client that resets before it is accepted has no address', seesReset, async (t) => {
    const { server, port } = await startServer(t);
    server.process.kill('SIGSTOP');
    await inState(server.process, 'T');
    const client = await dial(t, port);
    await once(client.resetAndDestroy(), 'close');
    server.process.kill('SIGCONT');
    const { status, stdout, stderr } = await server.ended;
    assert.deepEqual({ status, stderr }, { status: 1, stderr: 'server.ts: connection lost (ECONNRESET)\n' });
    assert.match(stdout, /\nIncoming connection from an unknown address\.\.\.\nServer is shutting down\. Bye!\n$/);
  });

  test('a closed stdout does not break the echo', LIMIT, async (t) => {
    const { server, port } = await startServer(t);
    server.process.stdout?.destroy();
    const client = await dial(t, port);
    const echoed = receiveAll(client);
    client.end('x'.repeat(5000));
    assert.equal(String(await echoed), 'x'.repeat(5000));
    const { status, stderr } = await server.ended;
    assert.deepEqual({ status, stderr }, { status: 0, stderr: '' });
  });

  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    test(`${signal} ends a server that waits, with status 0`, LIMIT, async (t) => {
      const { server, port } = await startServer(t);
      server.process.kill(signal);
      assert.deepEqual(await server.ended, {
        status: 0,
        stderr: '',
        stdout: `Server started on 127.0.0.1, listening on TCP port ${port}\nServer is shutting down. Bye!\n`,
      });
    });

    test(`${signal} ends a server that serves, with status 0, and closes the connection`, LIMIT, async (t) => {
      const { server, port } = await startServer(t, '127.0.0.1', patient(t)); // it need not wait: stdout is read
      const client = await dial(t, port);
      await server.printed(/Incoming connection/);
      server.process.kill(signal);
      assert.equal((await receiveAll(client)).length, 0);
      const { status, stdout, stderr } = await server.ended;
      assert.deepEqual({ status, stderr }, { status: 0, stderr: '' });
      assert.match(stdout, /\.\.\.\nServer is shutting down\. Bye!\n$/);
    });
  }

  test('what was printed before SIGTERM reaches a slow reader', LIMIT, async (t) => {
    const { server, port } = await startServer(t, '127.0.0.1', patient(t));
    server.process.stdout?.pause();
    const client = (await dial(t, port)).resume();
    await takenOf(client, 10 << 20); // until it is held back, with lines that the pipe has not taken
    server.process.kill('SIGTERM');
    await setTimeout(300); // the reader is slow; a server that does not wait for it has gone by now
    server.process.stdout?.resume();
    const { status, stdout } = await server.ended;
    assert.equal(status, 0);
    assert.match(stdout, /[^\n]\nServer is shutting down\. Bye!\n$/);
  });

  test('SIGTERM ends the server even if nobody reads what it prints', LIMIT, async (t) => {
    const { server, port } = await startServer(t);
    server.process.stdout?.pause();
    const client = (await dial(t, port)).resume();
    await takenOf(client, 10 << 20);
    client.on('error', () => {}); // the server leaves with bytes unread
    const status = exited(server);
    server.process.kill('SIGTERM');
    assert.equal(await status, 0);
    server.process.stdout?.resume();
  });

  const needsFullDisk = { ...LIMIT, skip: noFullDisk() };
  test('a disk that is full is an error with its code, and the echo goes on', needsFullDisk, async (t) => {
    const port = await closedPort();
    const server = start(t, onFullDisk(node('server.ts', '127.0.0.1', `${port}`)));
    const client = await dialLate(t, port);
    const echoed = receiveAll(client);
    client.end('Hello World!');
    assert.equal(String(await echoed), 'Hello World!');
    assert.deepEqual(await server.ended, { status: 1, stdout: '', stderr: 'server.ts: cannot print (ENOSPC)\n' });
  });

  test('SIGTERM after a fault of stdout ends the server with status 1', needsFullDisk, async (t) => {
    const port = await closedPort();
    const server = start(t, onFullDisk(node('server.ts', '127.0.0.1', `${port}`)));
    assert.equal(await reported(server), 'server.ts: cannot print (ENOSPC)\n');
    await dialLate(t, port);
    server.process.kill('SIGTERM');
    assert.deepEqual(await server.ended, { status: 1, stdout: '', stderr: 'server.ts: cannot print (ENOSPC)\n' });
  });

  test('SIGTERM after a lost connection ends the server with status 1, even if stdout is blocked', LIMIT, async (t) => {
    const { server, port } = await startServer(t);
    const client = await dial(t, port);
    await blockStdout(server, client);
    const fault = reported(server);
    client.resetAndDestroy();
    assert.equal(await fault, 'server.ts: connection lost (ECONNRESET)\n');
    const status = exited(server);
    server.process.kill('SIGTERM');
    assert.equal(await status, 1);
    server.process.stdout?.resume();
  });

  test('a client that resets while stdout is blocked ends the server once stdout is read again', LIMIT, async (t) => {
    const { server, port } = await startServer(t);
    const client = await dial(t, port);
    await blockStdout(server, client);
    const fault = reported(server);
    client.resetAndDestroy();
    await fault;
    server.process.stdout?.resume();
    const { status, stdout } = await server.ended;
    assert.equal(status, 1);
    assert.match(stdout, /\nServer is shutting down\. Bye!\n$/);
  });

  const ENDINGS: Record<string, (server: Running, client: Socket) => unknown> = {
    'two signals come': ({ process }) => [process.kill('SIGTERM'), process.kill('SIGINT')],
    'the client resets and a signal comes': async (server, client) => {
      const fault = reported(server);
      client.resetAndDestroy();
      await fault;
      server.process.kill('SIGTERM');
    },
    'a signal comes and the client closes': ({ process }, client) => [process.kill('SIGTERM'), client.end()],
  };
  for (const [what, end] of Object.entries(ENDINGS)) {
    test(`the last line is printed once if stdout is blocked while ${what}`, LIMIT, async (t) => {
      const { server, port } = await startServer(t, '127.0.0.1', patient(t));
      const client = await dial(t, port);
      client.on('error', () => {}); // the server may leave bytes unread
      await blockStdout(server, client);
      await end(server, client);
      await setTimeout(300);
      server.process.stdout?.resume();
      assert.equal((await server.ended).stdout.match(BYE)?.length, 1);
    });
  }

  const needsNameServer = { ...LIMIT, skip: noSilentNameServer() };
  test('SIGTERM ends a server at once that waits for a name server', needsNameServer, async (t) => {
    const server = start(t, withSilentNameServer(node('server.ts', 'example.test', '0')));
    const sockets = `/proc/${server.process.pid}/net/udp`;
    while (!existsSync(sockets) || !readFileSync(sockets, 'utf8').includes(':0035 ')) await setTimeout(10); // port 53
    server.process.kill('SIGTERM');
    assert.deepEqual(await server.ended, { status: null, stdout: '', stderr: '' }); // by the signal: it is not caught
  });

  const UNEXPECTED: Record<string, string> = {
    'between two calls': 'TextDecoder.prototype.decode = () => { throw new TypeError("out of order"); }',
    'in a listener': 'require("net").Server.prototype.close = () => { throw new TypeError("out of order"); }',
  };
  for (const [where, code] of Object.entries(UNEXPECTED)) {
    test(`an unexpected exception ${where} is one line on stderr, and status 1`, LIMIT, async (t) => {
      const server = start(t, node('server.ts', '127.0.0.1', '0'), preload(t, code));
      const [, port] = await server.printed(/ port (\d+)\n/);
      (await dial(t, Number(port))).on('error', () => {}).write('Hello World!');
      const { status, stderr } = await server.ended;
      assert.deepEqual({ status, stderr }, { status: 1, stderr: 'server.ts: out of order\n' });
    });
  }

  test('an error of the listening socket that comes later ends the server with status 1', LIMIT, async (t) => {
    const code = `const { listen } = require('net').Server.prototype;
      require('net').Server.prototype.listen = function (...args) {
        this.on('listening', () => setImmediate(() => this.emit('error', new Error('accept EMFILE'))));
        return listen.apply(this, args);
      };`; // libuv handles EMFILE by itself on some systems, so it cannot be provoked everywhere
    const { status, stderr } = await run(t, node('server.ts', '127.0.0.1', '0'), preload(t, code));
    assert.deepEqual({ status, stderr }, { status: 1, stderr: 'server.ts: accept EMFILE\n' });
  });

  test('Ctrl-C ends a server that npx started', LIMIT, async (t) => {
    const server = start(t, npx('server.ts', '127.0.0.1', '0'));
    await server.printed(/\n/);
    process.kill(-(server.process.pid ?? 0), 'SIGINT'); // to all processes of the terminal's foreground, as Ctrl-C does
    const { stdout, stderr } = await server.ended; // the status is that of the shell in between, which Ctrl-C ends too
    assert.match(stdout, /^Server started [^\n]+\nServer is shutting down\. Bye!\n$/);
    assert.equal(stderr, '');
  });

  test('a port that is taken is an error with host, port and code', LIMIT, async (t) => {
    const port = await listen(t, () => {});
    assert.deepEqual(await run(t, node('server.ts', '127.0.0.1', `${port}`)), {
      status: 1, stdout: '', stderr: `server.ts: cannot listen on 127.0.0.1 port ${port} (EADDRINUSE)\n`,
    });
  });

  test('a host that does not resolve is an error with host, port and code', LIMIT, async (t) => {
    const host = `${'x'.repeat(64)}.test`; // a label of 64 characters is refused before any name server is asked
    assert.deepEqual(await run(t, node('server.ts', host, '0')), {
      status: 1, stdout: '', stderr: `server.ts: cannot listen on ${host} port 0 (ENOTFOUND)\n`,
    });
  });

  test('an address that is not of this machine is an error with host, port and code', LIMIT, async (t) => {
    assert.deepEqual(await run(t, node('server.ts', '192.0.2.1', '65535')), {
      status: 1, stdout: '', stderr: 'server.ts: cannot listen on 192.0.2.1 port 65535 (EADDRNOTAVAIL)\n',
    });
  });

  /** In a network namespace whose ports below 1024 are reserved, without the right to take one. */
  const UNPRIVILEGED = [...unshare('--net'), 'sh', '-c', 'ip link set lo up && exec "$@"', 'sh',
    'setpriv', '--bounding-set', '-net_bind_service', '--'];
  const needsReserved = { ...LIMIT, skip: cannotRun(...UNPRIVILEGED, 'true') };
  test('a port that is reserved is an error with host, port and code', needsReserved, async (t) => {
    assert.deepEqual(await run(t, [...UNPRIVILEGED, ...node('server.ts', '127.0.0.1', '80')]), {
      status: 1, stdout: '', stderr: 'server.ts: cannot listen on 127.0.0.1 port 80 (EACCES)\n',
    });
  });

  const needsStrace = { ...LIMIT, skip: cannotRun('strace', '-f', 'true') };
  test('the system calls are those of the document', needsStrace, async (t) => {
    const port = await closedPort();
    const server = start(t, ['strace', '-f', '-qq', '-e', 'trace=socket,bind,listen,accept4', '-e', 'signal=none',
      '-o', '|cat >&2', ...node('server.ts', 'localhost', `${port}`)]);
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

  const PEERS: [program: string, commandLine: (port: number) => string[], skip: string | false][] = [
    ['nc', (port) => ['nc', '-N', '127.0.0.1', `${port}`], noNc()],
    ['ncat', (port) => ['ncat', '127.0.0.1', `${port}`], cannotRun('ncat', '--version')],
    ['socat', (port) => ['socat', '-t', '20', '-', `TCP:127.0.0.1:${port}`], cannotRun('socat', '-V')],
  ];
  for (const [program, commandLine, skip] of PEERS) {
    test(`${program} gets back what it sends`, { ...LIMIT, skip }, async (t) => {
      const { server, port } = await startServer(t);
      const text = 'añ€😀'.repeat(1000);
      const client = await run(t, ['sh', '-c', 'printf %s "$0" | "$@"', text, ...commandLine(port)]);
      assert.deepEqual(client, { status: 0, stdout: text, stderr: '' });
      const { status, stdout, stderr } = await server.ended;
      assert.deepEqual({ status, stderr }, { status: 0, stderr: '' });
      assert.equal(receives(stdout).join(''), text);
    });
  }

  test('random bytes in random pieces come back as they were', LIMIT, async (t) => {
    const seed = Number(process.env['SEED'] ?? Date.now() % 2 ** 32);
    t.diagnostic(`SEED=${seed}`);
    for (let round = 0; round < 10; round++) {
      const random = randomFrom(seed + round);
      const { server, port } = await startServer(t);
      const client = (await dial(t, port)).setNoDelay(true);
      const echoed = receiveAll(client);
      const sent = Buffer.from(Array.from({ length: random(20_000) }, () => random(256)));
      for (let start = 0, end = 0; start < sent.length; start = end) {
        end = start + 1 + random(3000);
        client.write(sent.subarray(start, end));
        if (random(2) === 0) await setImmediate(); // else the pieces may arrive as one
      }
      client.end();
      assert.ok((await echoed).equals(sent), `round ${round}`);
      assert.equal((await server.ended).status, 0);
    }
  });

  const WRONG: [string[], string][] = [
    ...['', 'abc', '65536', '1e3', '80.5', ' 80', '12345678901234567890'].map(
      (port): [string[], string] => [['localhost', port], `port "${port}" is not a whole number from 0 to 65535`],
    ),
    [['localhost', '0', 'more'], 'unexpected argument "more"'],
    [['--bogus'], 'unknown option "--bogus"'],
  ];
  for (const [args, message] of WRONG) {
    test(`server.ts ${args.join(' ')}: ${message}`, LIMIT, async (t) => {
      assert.deepEqual(await run(t, node('server.ts', ...args)), {
        status: 2, stdout: '', stderr: `server.ts: ${message}\nUsage: npx ts-node server.ts [host] [port]\n`,
      });
    });
  }

  for (const option of ['-h', '--help']) {
    test(`server.ts ${option} prints the usage`, LIMIT, async (t) => {
      const { status, stdout, stderr } = await run(t, node('server.ts', option));
      assert.match(stdout, /^Usage: npx ts-node server\.ts \[host\] \[port\]\n/);
      for (const listed of ['default: localhost', '0 to 65535', 'default: 54321']) {
        assert.ok(stdout.includes(listed), listed);
      }
      assert.deepEqual({ status, stderr }, { status: 0, stderr: '' });
    });
  }
});
