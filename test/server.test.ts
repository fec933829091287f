import assert from 'node:assert/strict';
import { type ChildProcess, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { buffer, text } from 'node:stream/consumers';
import { describe, test, type TestContext } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import { dial, listen } from './peers';
import {
  type Ended, launch, LIMIT, node, noIPv6, notLinux, npx, peakMemory, run, scratch, signal, start, startServer, unless,
} from './scripts';

const BYE = 'Server is shutting down. Bye!\n';
const LOST = /^server\.ts: (read ECONNRESET|write EPIPE|write ECONNRESET)\n$/; // the system reports one of them

const needsPipe = unless(notLinux('has pipes of 64 KiB'));

/** The lines that show data, and the last line. */
const lines = (...data: string[]) => data.map((chunk) => `Received following data: ${chunk}\n`).join('') + BYE;

/** What the server printed after its two lines about itself and the connection. */
const afterConnection = (stdout: string) => stdout.replace(/^.*\n.*\n/, '');

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

/** Starts a server, fills the pipe of its output, and connects to it. read() resolves to all that it prints. */
async function serveIntoPipe(t: TestContext) {
  const path = join(scratch(t), 'pipe');
  spawnSync('mkfifo', [path]);
  const [reader, writer] = await Promise.all([open(path, 'r'), open(path, 'w')]); // each waits for the other
  const program = launch(node('server.ts', '127.0.0.1', '0'), ['ignore', writer.fd, writer.fd]);
  t.after(() => signal(program, 'SIGKILL'));
  const ended = once(program, 'close');
  const { buffer: chunk, bytesRead } = await reader.read();
  const started = chunk.toString('utf8', 0, bytesRead);
  await writer.write('.'.repeat(65_536)); // as much as a pipe holds
  await writer.close();

  const port = Number(/port (\d+)/.exec(started)?.[1]);
  const read = async () => {
    const [printed] = await Promise.all([text(reader.createReadStream()), ended]);
    return started + printed.replace(/^\.+/, '');
  };
  return { program, port, client: await dial(t, port), read };
}

/** Resolves when the server has read all that has arrived, and its connection is ESTABLISHED (01) or in CLOSE-WAIT. */
async function hasRead(port: number, state: '01' | '08'): Promise<void> {
  const line = new RegExp(`:${port.toString(16).toUpperCase()} [\\dA-F:]+ ${state} 0{8}:0{8} `);
  while (!line.test(readFileSync('/proc/net/tcp', 'utf8'))) await setTimeout(10);
}

/** Resolves when the program is asleep until something happens (S), or suspended (T). */
async function reaches(state: 'S' | 'T', { pid }: ChildProcess): Promise<void> {
  while (!readFileSync(`/proc/${pid}/stat`, 'utf8').includes(`) ${state} `)) await setTimeout(10);
}

/** Suspends the program, as Ctrl-Z does. */
async function suspend(program: ChildProcess): Promise<void> {
  program.kill('SIGSTOP');
  await reaches('T', program);
}

describe('server.ts', { concurrency: 4 }, () => {
  test('a server on an IPv6 address shows it, and those of IPv4 clients as IPv6', unless(noIPv6()), async (t) => {
    const { server, port } = await startServer(t, '::');
    const { localPort } = (await dial(t, port)).end();
    assert.equal((await server.ended).stdout, `Server started on ::, listening on TCP port ${port}\n`
      + `Incoming connection from ::ffff:127.0.0.1:${localPort}...\n${BYE}`);
  });

  const DATA: [what: string, sent: (string | Uint8Array)[], printed: string[]][] = [
    ['each chunk is shown on a line of its own, and sent back at once', ['one', 'two'], ['one', 'two']],
    ['a split character is shown once it is complete', [Buffer.of(0xe2, 0x82), Buffer.of(0xac)], ['', '€']],
    ['a byte order mark is shown', ['\ufeffa'], ['\ufeffa']],
    ['what is not UTF-8 is shown as U+FFFD', [Buffer.from('61ff62', 'hex')], ['a\ufffdb']],
    ['an incomplete character at EOF is sent back, but not shown', [Buffer.from('61e282', 'hex')], ['a']],
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
      const { status, stdout, stderr } = await server.ended;
      assert.deepEqual([status, stderr, afterConnection(stdout)], [0, '', lines(...printed)]);
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
      const offered = Array(1350).fill('Hello World!'.repeat(5000)); // 81 MB, far more than the system holds
      Readable.from(offered).pipe(client);
      const taken = () => client.bytesWritten - client.writableLength; // by the system
      let before = -1;
      while (taken() > before) {
        before = taken();
        await setTimeout(1000);
      }
      const grown = peakMemory(server.process) - memory;
      assert.ok(taken() < 81e6 && grown < 56 << 20, `it took ${taken()} bytes, and grew by ${grown}`);
      server.process.stdout?.resume();
      client.resume();
      while (client.bytesRead < before) await once(client, 'data'); // it goes on
    });
  }

  test('a client whose FIN the server has read still gets the echo', needsPipe, async (t) => {
    const { port, client, read } = await serveIntoPipe(t);
    const echo = buffer(client.end('Hello'));
    await hasRead(port, '08'); // CLOSE-WAIT
    assert.equal(afterConnection(await read()), lines('Hello'));
    assert.equal(String(await echo), 'Hello');
  });

  test('once a client is accepted, a second one is refused', LIMIT, async (t) => {
    const { server, port, client } = await serve(t);
    await server.printed(/Incoming connection/);
    await assert.rejects(dial(t, port), { code: 'ECONNREFUSED' });
    client.end('still served');
    assert.equal(afterConnection((await server.ended).stdout), lines('still served'));
  });

  test('a second client that waits in the backlog is reset', unless(notLinux('lets two wait there')), async (t) => {
    const { server, port } = await startServer(t);
    await suspend(server.process); // both are connected before the server can accept one
    const first = await dial(t, port);
    const second = await dial(t, port);
    server.process.kill('SIGCONT');
    await assert.rejects(once(second, 'close'), { code: 'ECONNRESET' });
    first.end('the first');
    assert.equal(afterConnection((await server.ended).stdout), lines('the first'));
  });

  test('a client that resets before accept() is shown as unknown:0', unless(notLinux('accepts it')), async (t) => {
    const { server, port } = await startServer(t);
    await suspend(server.process);
    await once((await dial(t, port)).resetAndDestroy(), 'close');
    server.process.kill('SIGCONT');
    const ended = await server.ended;
    assertLost(ended);
    assert.match(ended.stdout, /\nIncoming connection from unknown:0\.\.\.\n/);
  });

  test('a reset after the echo is reported as the system call that failed, with status 1', LIMIT, async (t) => {
    const { server, client } = await serve(t);
    client.write('Hello');
    await once(client, 'readable');
    client.resetAndDestroy();
    assertLost(await server.ended);
  });

  for (const when of ['with', 'after']) {
    test(`while stdout is blocked, an echo lost to a reset ${when} the bytes is an error`, needsPipe, async (t) => {
      const { program, port, client, read } = await serveIntoPipe(t);
      if (when === 'with') await suspend(program); // it learns of both at once, and some versions of Node report EOF
      await new Promise((sent) => client.write('Hello', sent));
      if (when === 'after') await hasRead(port, '01');
      client.resetAndDestroy();
      program.kill('SIGCONT');
      await reaches('S', program);
      assert.match((await read()).replace(/^Server .*\nIncoming .*\n(Received .*Hello\n)?/, ''), LOST);
      assert.equal(program.exitCode, 1);
    });
  }

  test('Ctrl-C ends a server that npx started, and frees the port', LIMIT, async (t) => {
    const server = start(t, npx('server.ts', '127.0.0.1', '0'));
    const [started, port] = await server.printed(/^.* (\d+)\n/);
    signal(server.process, 'SIGINT'); // to all processes of the terminal's foreground, as Ctrl-C does
    const { stdout, stderr } = await server.ended; // the status is npx's own
    assert.deepEqual([stdout, stderr], [started, '']);
    await listen(t, () => {}, '127.0.0.1', Number(port)); // rejects if the port is in use
  });

  test('a failure to listen is an error that names the system call and what it was asked for', LIMIT, async (t) => {
    assert.deepEqual(await run(t, node('server.ts', '192.0.2.1', '65535')), { // the address of another machine
      status: 1, stdout: '', stderr: 'server.ts: listen EADDRNOTAVAIL: address not available 192.0.2.1:65535\n',
    });
  });
});
