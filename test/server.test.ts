import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { existsSync, readFileSync } from 'node:fs';
import type { Socket } from 'node:net';
import { describe, test, type TestContext } from 'node:test';
import { setImmediate, setTimeout } from 'node:timers/promises';
import { noNameServer, onLoopback, withSilentNameServer } from './network';
import { closedPort, dial, dialSoon, listen, receiveAll } from './peers';
import {
  cannotRun, edited, type Ended, inState, intoPipe, LIMIT, node, noIPv6, noProc, noSocketOf, notLinux, npx, PATIENCE,
  peakMemory, RAW, run, type Running, start, startServer, VISIBLE,
} from './scripts';

const BLOCKING = 500_000; // more NUL bytes than stdout takes if it is not being read: each is printed as \u{0}
const OFFERED = 81_000_000; // far more bytes than the system buffers on the way
const BYE = 'Server is shutting down. Bye!\n';
const LOST = /^server\.ts: (read ECONNRESET|write EPIPE|write ECONNRESET)\n$/; // the system reports one of them

const on = (skip: string | false) => ({ ...LIMIT, skip });

/** The lines that show data, and the last line. */
const lines = (...data: string[]) => data.map((text) => `Received following data: ${text}\n`).join('') + BYE;

/** What the server printed after its two lines about itself and the connection. */
const afterConnection = (stdout: string) => stdout.replace(/^.*\n.*\n/, '');

/** Asserts that the server ended by itself: no error, and its last line printed once, on a line of its own. */
function assertEnded({ status, stdout, stderr }: Ended): void {
  assert.deepEqual({ status, stderr }, { status: 0, stderr: '' });
  assert.equal(stdout.indexOf(`\n${BYE}`), stdout.length - BYE.length - 1, 'it must end with the last line, once');
}

/** Asserts that the server has lost the connection, says so, and doesn't say Bye. */
function assertLost({ status, stdout, stderr }: Ended): void {
  assert.match(stderr, LOST);
  assert.deepEqual([status, stdout.includes(BYE)], [1, false]);
}

/** Starts a server, and connects to it. */
async function serve(t: TestContext) {
  const { server, port } = await startServer(t);
  return { server, port, client: await dial(t, port) };
}

/** Resolves to the number when it has not changed for a second. */
async function settled(number: () => number): Promise<number> {
  for (let before = -1; number() > before; await setTimeout(1000)) before = number();
  return number();
}

/** Offers many bytes. Resolves to how many the system has taken when it takes no more. */
function takenFrom(client: Socket): Promise<number> {
  let taken = 0;
  const send = () => client.write('Hello World!'.repeat(5000), (error) => {
    if (!error && (taken += 60_000) < OFFERED) send();
  });
  send();
  return settled(() => taken);
}

/** Asserts that the server doesn't take all that the client offers, and doesn't grow by as much as it takes. */
async function assertHeldBack({ process }: Running, client: Socket): Promise<void> {
  const before = peakMemory(process);
  assert.ok(await takenFrom(client) < OFFERED, 'the server took all of it');
  const grown = peakMemory(process) - before;
  assert.ok(grown < 56 << 20, `it grew by ${grown} bytes`);
}

/** Resolves when the server on the port has read all that has arrived, and its connection is in that state. */
async function hasRead(port: number, state: '01' | '08'): Promise<void> {
  const line = new RegExp(`:${port.toString(16).toUpperCase()} [\\dA-F:]+ ${state} 0{8}:0{8} `);
  while (!line.test(readFileSync('/proc/net/tcp', 'utf8'))) await setTimeout(10);
}

/** Stops reading what the server prints, and has the client send more than stdout takes. */
async function blockStdout({ process }: Running, client: Socket): Promise<void> {
  process.stdout?.pause();
  client.resume().write(Buffer.alloc(BLOCKING));
  assert.ok(await settled(() => client.bytesRead) < BLOCKING, 'stdout has taken all');
}

describe('server.ts', { concurrency: 4 }, () => {
  const HOSTS: [host: string, shown: string, client: string, address: string, skip: string | false][] = [
    ['localhost', 'localhost', '127.0.0.1', '127.0.0.1', false], // and not at ::1, see transcripts.test.ts
    ['', '0.0.0.0', '127.0.0.2', '127.0.0.1', notLinux('has 127.0.0.2')], // every IPv4 address, so this one too
    ['::1', '::1', '::1', '[::1]', noIPv6()],
    ['::', '::', '127.0.0.1', '[::ffff:127.0.0.1]', noIPv6()],
  ];
  for (const [host, shown, client, address, skip] of HOSTS) {
    test(`server.ts '${host}' 0 shows ${shown}, its port, and a client as ${address}`, on(skip), async (t) => {
      const { server, port } = await startServer(t, host);
      const { localPort } = (await dial(t, port, client)).end();
      assert.equal((await server.ended).stdout, `Server started on ${shown}, listening on TCP port ${port}\n`
        + `Incoming connection from ${address}:${localPort}...\n${BYE}`);
    });
  }

  const DATA: [what: string, sent: (string | Uint8Array)[], printed: string[]][] = [
    ['if a client sends nothing, no line shows data', [], []],
    ['each chunk is shown on a line of its own, and sent back at once', ['one', 'two'], ['one', 'two']],
    ['a split character is shown with the chunk that completes it', [Buffer.of(0xe2, 0x82), Buffer.of(0xac)],
      ['€']],
    ['a byte order mark is shown', ['\ufeffa'], ['\ufeffa']],
    ['what is not UTF-8 is shown as U+FFFD', [Buffer.from('61ff62', 'hex')], ['a\ufffdb']],
    ['an incomplete character at EOF is shown as U+FFFD', [Buffer.from('61e282', 'hex')], ['a', '\ufffd']],
    ['what controls a terminal is escaped; newline, tab and adjacent characters are not', [RAW], [VISIBLE]],
  ];
  for (const [what, sent, printed] of DATA) {
    test(what, LIMIT, async (t) => {
      const { server, client } = await serve(t);
      const echo = receiveAll(client);
      for (const chunk of sent) {
        client.write(chunk);
        while (client.bytesRead < client.bytesWritten) await once(client, 'data');
      }
      client.end();
      assert.deepEqual(await echo, Buffer.concat(sent.map((chunk) => Buffer.from(chunk))));
      const ended = await server.ended;
      assertEnded(ended);
      assert.equal(afterConnection(ended.stdout), lines(...printed));
    });
  }

  const seed = process.env['SEED'] ?? `${Date.now()}`;
  test(`random bytes in random chunks come back unchanged (SEED=${seed})`, LIMIT, async (t) => {
    const sent = createHash('shake256', { outputLength: 50_000 }).update(seed).digest();
    const { server, client } = await serve(t);
    const echo = receiveAll(client.setNoDelay(true));
    for (let start = 0, end = 0; start < sent.length; start = end) {
      end = start + 1 + 10 * (sent[start] ?? 0);
      client.write(sent.subarray(start, end));
      if (end % 2 === 0) await setImmediate(); // else the chunks may arrive as one
    }
    client.end();
    assert.ok((await echo).equals(sent));
    assertEnded(await server.ended);
  });

  test('as long as the client does not read, it is held back, and memory stays flat', LIMIT, async (t) => {
    const port = await closedPort();
    const server = start(t, ['sh', '-c', 'exec "$@" > /dev/null', 'sh', ...node('server.ts', '127.0.0.1', `${port}`)]);
    const client = await dialSoon(t, port);
    await assertHeldBack(server, client);
  });

  test('as long as stdout is not being read, the client is held back, and memory stays flat', LIMIT, async (t) => {
    const { server, client } = await serve(t);
    server.process.stdout?.pause();
    await assertHeldBack(server, client.resume());
  });

  test('a client that has sent its FIN gets the whole echo, however late stdout is read', LIMIT, async (t) => {
    const { server, client } = await serve(t);
    const echo = receiveAll(client);
    await blockStdout(server, client);
    await once(client.end(), 'finish');
    server.process.stdout?.resume();
    assert.equal((await echo).length, BLOCKING);
    assertEnded(await server.ended);
  });

  test('a client whose FIN the server has read still gets the echo', on(noProc()), async (t) => {
    const port = await closedPort();
    const { read } = intoPipe(t, node('server.ts', '127.0.0.1', `${port}`), 'same pipe');
    const echo = receiveAll((await dialSoon(t, port)).end('Hello'));
    await hasRead(port, '08'); // CLOSE-WAIT
    assert.match(await read(), /Received following data: Hello\nServer is shutting down\. Bye!\n$/);
    assert.equal(String(await echo), 'Hello');
  });

  test('once a client is accepted, a second one is refused', LIMIT, async (t) => {
    const { server, port, client } = await serve(t);
    await server.printed(/Incoming connection/);
    await assert.rejects(dial(t, port), { code: 'ECONNREFUSED' });
    client.end('still served');
    assert.equal(afterConnection((await server.ended).stdout), lines('still served'));
  });

  test('a second client that waits in the backlog is reset', on(notLinux('lets two wait there')), async (t) => {
    const { server, port } = await startServer(t);
    server.process.kill('SIGSTOP'); // both are connected before the server can accept one
    await inState(server.process, 'T');
    const first = await dial(t, port);
    const second = await dial(t, port);
    server.process.kill('SIGCONT');
    await assert.rejects(once(second, 'close'), { code: 'ECONNRESET' });
    first.end('the first');
    assert.equal(afterConnection((await server.ended).stdout), lines('the first'));
  });

  const early = on(notLinux('lets it be accepted'));
  test('a client that resets before it is accepted is shown as unknown:0', early, async (t) => {
    const { server, port } = await startServer(t);
    server.process.kill('SIGSTOP');
    await inState(server.process, 'T');
    await once((await dial(t, port)).resetAndDestroy(), 'close');
    server.process.kill('SIGCONT');
    const ended = await server.ended;
    assertLost(ended);
    assert.match(ended.stdout, /\nIncoming connection from unknown:0\.\.\.\n/);
  });

  const RESETS: [when: string, prepare: (client: Socket, server: Running) => Promise<unknown>][] = [
    ['before it sends', async () => {}],
    ['while its bytes are in transit', (client) => (client.write('x'.repeat(16 << 20)), once(client, 'data'))],
    ['with the echo unread', (client, server) => (client.pause().write('Hello'), server.printed(/Hello/))],
    ['while it is held back', (client) => takenFrom(client)],
    ['after its FIN', async (client, { process }) => {
      process.kill('SIGSTOP'); // so that it can't read the FIN before the RST
      await inState(process, 'T');
      await once(client.pause().end('Hello'), 'finish');
    }],
  ];
  for (const [when, prepare] of RESETS) {
    test(`if a client resets ${when}, the failed system call is reported, and the status is 1`, LIMIT, async (t) => {
      const { server, client } = await serve(t);
      await server.printed(/Incoming connection/);
      await prepare(client, server);
      client.resetAndDestroy();
      server.process.kill('SIGCONT');
      assertLost(await server.ended);
    });
  }

  test('if a client resets right after its bytes, before they are printed, the lost echo is an error', on(noProc()),
    async (t) => {
      const port = await closedPort();
      const { program, read } = intoPipe(t, node('server.ts', '127.0.0.1', `${port}`), 'same pipe');
      const client = await dialSoon(t, port);
      program.kill('SIGSTOP'); // so that it learns of the bytes and the RST at once: some versions of Node report EOF
      await inState(program, 'T');
      await new Promise((sent) => client.write('Hello', sent));
      client.resetAndDestroy();
      program.kill('SIGCONT');
      await inState(program, 'S');
      assert.match((await read()).replace(/^Server .*\nIncoming .*\n(Received .* Hello\n)?/, ''), LOST);
      assert.equal(program.exitCode, 1);
    });

  const BLOCKED = [['follows earlier output', 'same pipe'], ['is reported once if its reader leaves', 'file']] as const;
  for (const [what, stderr] of BLOCKED) {
    test(`an error while stdout is blocked ${what}`, on(noProc()), async (t) => {
      const port = await closedPort();
      const { program, read, leave } = intoPipe(t, node('server.ts', '127.0.0.1', `${port}`), stderr);
      const client = await dialSoon(t, port);
      if (stderr !== 'file') await new Promise((sent) => client.write('Hello', sent));
      await hasRead(port, '01'); // ESTABLISHED
      client.resetAndDestroy();
      await noSocketOf(program); // so it knows about the reset
      const output = stderr === 'file' ? await leave() : (await read()).replace(/^(Se|In|Re)[^]*?\n(?=\w+\.ts:)/, '');
      assert.match(output, LOST);
      assert.equal(program.exitCode, 1);
    });
  }

  test('if the reader of stdout leaves, the server ends silently with status 1', LIMIT, async (t) => {
    const { server, client } = await serve(t);
    await server.printed(/Incoming connection/);
    server.process.stdout?.destroy();
    await receiveAll(client.end('Hello World!')).catch(() => {}); // what the client gets depends on timing
    assert.deepEqual({ ...await server.ended, stdout: '' }, { status: 1, stdout: '', stderr: '' });
  });

  for (const [signal, what] of ['SIGINT', 'SIGTERM'].flatMap((name) => [[name, 'waits'], [name, 'serves']] as const)) {
    test(`${signal} ends a server that ${what}, with the last line and status 0`, LIMIT, async (t) => {
      const { server, port } = await startServer(t);
      const eof = what === 'serves' && receiveAll(await dial(t, port));
      if (eof) await server.printed(/Incoming connection/);
      process.kill(server.process.pid ?? 0, signal);
      assertEnded(await server.ended);
      await eof;
    });
  }

  test('SIGTERM ends a server whose stdout is not being read, with status 0', LIMIT, async (t) => {
    const { server, client } = await serve(t);
    await blockStdout(server, client);
    server.process.kill('SIGTERM');
    assert.deepEqual(await once(server.process, 'exit'), [0, null]);
    server.process.stdout?.resume();
  });

  test('SIGTERM kills a server that is waiting for a name server', on(noNameServer()), async (t) => {
    const server = start(t, withSilentNameServer(node('server.ts', 'example.test', '0'), 12));
    const sockets = `/proc/${server.process.pid}/net/udp`;
    while (!existsSync(sockets) || !readFileSync(sockets, 'utf8').includes(':0035 ')) await setTimeout(10); // port 53
    server.process.kill('SIGTERM');
    assert.deepEqual(await server.ended, { status: null, stdout: '', stderr: '' });
  });

  test('Ctrl-C ends a server that npx started, with the last line', PATIENCE, async (t) => {
    const server = start(t, npx('server.ts', '127.0.0.1', '0'));
    await server.printed(/\n/);
    process.kill(-(server.process.pid ?? 0), 'SIGINT'); // to all processes of the terminal's foreground, as Ctrl-C does
    const { stdout, stderr } = await server.ended; // the status is that of the shell in between, which ends too
    assertEnded({ status: 0, stdout, stderr });
  });

  const reserve = (...args: string[]) => onLoopback('', ['setpriv', '--bounding-set', '-net_bind_service', ...args]);
  const REFUSING: [what: string, host: string, port: string, error: string, skip: string | false][] = [
    ['an address of another machine', '192.0.2.1', '65535',
      'listen EADDRNOTAVAIL: address not available 192.0.2.1:65535', false],
    ['a link-local address without its zone', 'fe80::1', '0', 'listen EINVAL: invalid argument fe80::1',
      notLinux('says EINVAL') || noIPv6()],
    ['a port in use', '127.0.0.1', 'in use', 'listen EADDRINUSE: address already in use 127.0.0.1:PORT', false],
    ['a reserved port', '127.0.0.1', '80', 'listen EACCES: permission denied 127.0.0.1:80',
      cannotRun(...reserve('true'))],
  ];
  for (const [what, host, port, error, skip] of REFUSING) {
    test(`${what} is an error that names the system call and what it was asked for`, on(skip), async (t) => {
      const number = port === 'in use' ? `${await listen(t, () => {})}` : port;
      const command = node('server.ts', host, number);
      const stderr = `server.ts: ${error.replace('PORT', number)}\n`;
      assert.deepEqual(await run(t, port === '80' ? reserve(...command) : command), { status: 1, stdout: '', stderr });
    });
  }

  const MISTAKES: [place: string, code: string, mistake: string, where: string][] = [
    ['serve()', 'await sendAll(', 'await sendAl(', 'serve'],
    ['a listener', 'process.exit();', 'proces.exit();', 'process.endAtSignal'],
  ];
  for (const [place, code, mistake, where] of MISTAKES) {
    test(`a bug in ${place} is shown with its location`, LIMIT, async (t) => {
      const server = start(t, edited('server.ts', code, mistake, '127.0.0.1', '0'));
      const [, port] = await server.printed(/ port (\d+)\n/);
      if (place === 'a listener') server.process.kill();
      else (await dial(t, Number(port))).end('Hello');
      const { status, stderr } = await server.ended;
      assert.equal(status, 1);
      assert.match(stderr, new RegExp(`^ReferenceError: \\w+ is not defined\n +at ${where} \\(.*\\.js:\\d+`, 'm'));
    });
  }
});
