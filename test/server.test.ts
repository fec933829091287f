import assert from 'node:assert/strict';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import type { Socket } from 'node:net';
import { buffer } from 'node:stream/consumers';
import { describe, test, type TestContext } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import { closedPort, dial, dialSoon, listen } from './peers';
import {
  asleep, type Ended, intoPipe, LIMIT, needsPipe, node, noIPv6, notLinux, npx, peakMemory, RAW, run, signal, start,
  startServer, suspend, VISIBLE,
} from './scripts';

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

/** Starts a server with its stdout in a full pipe, and connects to it. */
async function serveIntoPipe(t: TestContext) {
  const port = await closedPort();
  const server = intoPipe(t, node('server.ts', '127.0.0.1', `${port}`), 'same pipe');
  return { ...server, port, client: await dialSoon(t, port) };
}

/** Resolves when the server has read all that has arrived, and its connection is ESTABLISHED (01) or in CLOSE-WAIT. */
async function hasRead(port: number, state: '01' | '08'): Promise<void> {
  const line = new RegExp(`:${port.toString(16).toUpperCase()} [\\dA-F:]+ ${state} 0{8}:0{8} `);
  while (!line.test(readFileSync('/proc/net/tcp', 'utf8'))) await setTimeout(10);
}

describe('server.ts', { concurrency: 4 }, () => {
  for (const [host, shown, client, address, skip] of [
    ['localhost', 'localhost', '127.0.0.1', '127.0.0.1', false], // and not at ::1, see transcripts.test.ts
    ['', '0.0.0.0', '127.0.0.2', '127.0.0.1', notLinux('has 127.0.0.2')], // every IPv4 address, so this one too
    ['::1', '::1', '::1', '[::1]', noIPv6()],
    ['::', '::', '127.0.0.1', '[::ffff:127.0.0.1]', noIPv6()],
  ] as const) {
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
    ['a split character is shown once it is complete', [Buffer.of(0xe2, 0x82), Buffer.of(0xac)], ['€']],
    ['a byte order mark is shown', ['\ufeffa'], ['\ufeffa']],
    ['what is not UTF-8 is shown as U+FFFD', [Buffer.from('61ff62', 'hex')], ['a\ufffdb']],
    ['an incomplete character at EOF is shown as U+FFFD', [Buffer.from('61e282', 'hex')], ['a', '\ufffd']],
    ['what controls a terminal is escaped; newline, tab and adjacent characters are not', [RAW], [VISIBLE]],
  ];
  for (const [what, sent, printed] of DATA) {
    test(what, LIMIT, async (t) => {
      const { server, client } = await serve(t);
      const echo = buffer(client);
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

  for (const what of ['the client does not read', 'stdout is not being read']) {
    test(`as long as ${what}, the client is held back, and memory stays flat`, LIMIT, async (t) => {
      const { server, client } = await serve(t);
      if (what === 'stdout is not being read') {
        server.process.stdout?.pause();
        client.resume();
      }
      const memory = peakMemory(server.process);
      let taken = 0; // by the system
      const send = () => client.write('Hello World!'.repeat(5000), (error) => {
        if (!error && (taken += 60_000) < OFFERED) send();
      });
      send();
      for (let before = -1; taken > before; await setTimeout(1000)) before = taken;
      const grown = peakMemory(server.process) - memory;
      assert.ok(taken < OFFERED && grown < 56 << 20, `it took ${taken} bytes, and grew by ${grown}`);
      server.process.stdout?.resume();
      client.resume();
      for (const before = taken; client.bytesRead < before;) await once(client, 'data'); // it goes on
    });
  }

  test('a client whose FIN the server has read still gets the echo', needsPipe, async (t) => {
    const { port, client, read } = await serveIntoPipe(t);
    const echo = buffer(client.end('Hello'));
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
    await suspend(server.process); // both are connected before the server can accept one
    const first = await dial(t, port);
    const second = await dial(t, port);
    server.process.kill('SIGCONT');
    await assert.rejects(once(second, 'close'), { code: 'ECONNRESET' });
    first.end('the first');
    assert.equal(afterConnection((await server.ended).stdout), lines('the first'));
  });

  test('a client that resets before it is accepted is shown as unknown:0', on(notLinux('accepts it')), async (t) => {
    const { server, port } = await startServer(t);
    await suspend(server.process);
    await once((await dial(t, port)).resetAndDestroy(), 'close');
    server.process.kill('SIGCONT');
    const ended = await server.ended;
    assertLost(ended);
    assert.match(ended.stdout, /\nIncoming connection from unknown:0\.\.\.\n/);
  });

  const RESETS: [when: string, prepare: (client: Socket, server: ChildProcess) => Promise<unknown>][] = [
    ['after the echo', (client) => (client.write('Hello'), once(client, 'readable'))],
    ['after its FIN', async (client, server) => {
      await suspend(server); // so that it can't read the FIN before the RST
      await once(client.pause().end('Hello'), 'finish');
    }],
  ];
  for (const [when, prepare] of RESETS) {
    test(`if a client resets ${when}, the failed system call is reported, and the status is 1`, LIMIT, async (t) => {
      const { server, client } = await serve(t);
      await server.printed(/Incoming connection/);
      await prepare(client, server.process);
      client.resetAndDestroy();
      server.process.kill('SIGCONT');
      assertLost(await server.ended);
    });
  }

  for (const when of ['with', 'after']) {
    test(`while stdout is blocked, an echo lost to a reset ${when} the bytes is an error`, needsPipe, async (t) => {
      const { program, port, client, read } = await serveIntoPipe(t);
      if (when === 'with') await suspend(program); // it learns of both at once, and some versions of Node report EOF
      await new Promise((sent) => client.write('Hello', sent));
      if (when === 'after') await hasRead(port, '01');
      client.resetAndDestroy();
      program.kill('SIGCONT');
      await asleep(program);
      assert.match((await read()).replace(/^Server .*\nIncoming .*\n(Received .*Hello\n)?/, ''), LOST);
      assert.equal(program.exitCode, 1);
    });
  }

  for (const [name, what] of [['SIGINT', 'waits'], ['SIGTERM', 'serves']] as const) {
    test(`${name} ends a server that ${what}, with the last line and status 0`, LIMIT, async (t) => {
      const { server, port } = await startServer(t);
      const eof = what === 'serves' && buffer(await dial(t, port));
      if (eof) await server.printed(/Incoming connection/);
      server.process.kill(name);
      assertEnded(await server.ended);
      await eof;
      if (eof) await start(t, node('server.ts', '127.0.0.1', `${port}`)).printed(/started/); // it can restart at once
    });
  }

  test('SIGTERM ends a server whose stdout is not being read, with status 0', needsPipe, async (t) => {
    const { program } = await serveIntoPipe(t);
    await asleep(program);
    program.kill('SIGTERM');
    assert.deepEqual(await once(program, 'exit'), [0, null]);
  });

  test('Ctrl-C ends a server that npx started, with the last line', LIMIT, async (t) => {
    const server = start(t, npx('server.ts', '127.0.0.1', '0'));
    await server.printed(/\n/);
    signal(server.process, 'SIGINT'); // to all processes of the terminal's foreground, as Ctrl-C does
    const { stdout, stderr } = await server.ended; // the status is that of the shell in between, which ends too
    assertEnded({ status: 0, stdout, stderr });
  });

  for (const [what, host, error] of [
    ['an address of another machine', '192.0.2.1', 'EADDRNOTAVAIL: address not available'],
    ['a port in use', '127.0.0.1', 'EADDRINUSE: address already in use'],
  ] as const) {
    test(`${what} is an error that names the system call and what it was asked for`, LIMIT, async (t) => {
      const port = await listen(t, () => {});
      assert.deepEqual(await run(t, node('server.ts', host, `${port}`)), {
        status: 1, stdout: '', stderr: `server.ts: listen ${error} ${host}:${port}\n`,
      });
    });
  }
});
