import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { existsSync, readFileSync } from 'node:fs';
import type { Socket } from 'node:net';
import { describe, test, type TestContext } from 'node:test';
import { setImmediate, setTimeout } from 'node:timers/promises';
import { noNameServer, onLoopback, withSilentNameServer } from './network';
import { closedPort, dial, listen, receiveAll } from './peers';
import {
  cannotRun, edited, type Ended, inState, LIMIT, node, noFullDisk, noIPv6, noNc, noStrace, notLinux, npx, onFullDisk,
  PATIENCE, peakMemory, reported, run, type Running, start, startServer, startWithSlowReader,
} from './scripts';

const BLOCKING = 500_000; // more NUL bytes than stdout takes if it is not read: each is printed as four characters
const OFFERED = 81_000_000; // far more bytes than the system buffers on the way
const BYE = 'Server is shutting down. Bye!\n';
const LOST = /^server\.ts: connection lost \((ECONNRESET|EPIPE)\)\n$/; // the system reports the one or the other

const on = (skip: string | false) => ({ ...LIMIT, skip });

/** The lines that show data, and the last line. */
const lines = (...data: string[]) => data.map((text) => `Received following data: ${text}\n`).join('') + BYE;

/** What the server printed after its two lines about itself and the connection. */
const afterConnection = (stdout: string) => stdout.replace(/^.*\n.*\n/, '');

/** Asserts how the server ended, and that its last line is printed once, in a line of its own. */
function assertEnded({ status, stdout, stderr }: Ended, expected = 0, error = /^$/): void {
  assert.match(stderr, error);
  assert.equal(status, expected);
  assert.equal(stdout.indexOf(`\n${BYE}`), stdout.length - BYE.length - 1, 'it does not end with the last line, once');
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

/** Stops reading what the server prints, and has the client send more than stdout takes. */
async function blockStdout({ process }: Running, client: Socket): Promise<void> {
  process.stdout?.pause();
  client.resume().write(Buffer.alloc(BLOCKING));
  assert.ok(await settled(() => client.bytesRead) < BLOCKING, 'stdout has taken all');
}

describe('server.ts', { concurrency: 4 }, () => {
  const HOSTS: [host: string, shown: string, client: string, address: string, skip: string | false][] = [
    ['localhost', 'localhost', '127.0.0.1', '127.0.0.1', false],
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

  test('a server on localhost can be reached only at 127.0.0.1', on(notLinux('has 127.0.0.2')), async (t) => {
    const { port } = await startServer(t, 'localhost');
    await assert.rejects(dial(t, port, '127.0.0.2'), { code: 'ECONNREFUSED' });
    (await dial(t, port)).end();
  });

  const DATA: [what: string, sent: (string | Uint8Array)[], printed: string[]][] = [
    ['if a client sends nothing, no line shows data', [], []],
    ['data is sent back before the client sends more', ['one', 'two'], ['one', 'two']],
    ['a line shows at most 1,024 bytes', ['x'.repeat(2049)], ['x'.repeat(1024), 'x'.repeat(1024), 'x']],
    ['a character that two lines share is in the second', [`${'x'.repeat(1023)}€y`], ['x'.repeat(1023), '€y']],
    ['bytes that complete no character print no line', [...Buffer.from('€')].map((byte) => Buffer.of(byte)), ['€']],
    ['a byte order mark is printed', ['\ufeffa'], ['\ufeffa']],
    ['what is not UTF-8 is printed as U+FFFD', [Buffer.from('61ff62', 'hex')], ['a\ufffdb']],
    ['an incomplete character at EOF is printed as U+FFFD', [Buffer.from('61e282', 'hex')], ['a', '\ufffd']],
    ['what controls a terminal is escaped, unlike its neighbours, newline and tab',
      ['\0\b\t\n\v\f\r\x1b[2J\x1f ~\x7f\x80\x9f\xa0\u2029\u202a\u202e\u202f\u2065\u2066\u2069\u206a.'],
      ['\\x00\\x08\t\n\\x0b\\x0c\\x0d\\x1b[2J\\x1f ~\\x7f\\x80\\x9f\xa0'
        + '\u2029\\u202a\\u202e\u202f\u2065\\u2066\\u2069\u206a.']],
  ];
  for (const [what, sent, printed] of DATA) {
    test(what, LIMIT, async (t) => {
      const { server, client } = await serve(t);
      const echo = receiveAll(client);
      for (const piece of sent) {
        client.write(piece);
        while (client.bytesRead < client.bytesWritten) await once(client, 'data');
      }
      client.end();
      assert.deepEqual(await echo, Buffer.concat(sent.map((piece) => Buffer.from(piece))));
      const ended = await server.ended;
      assertEnded(ended);
      assert.equal(afterConnection(ended.stdout), lines(...printed));
    });
  }

  const seed = process.env['SEED'] ?? `${Date.now()}`;
  test(`random bytes in random pieces arrive back as they were (SEED=${seed})`, LIMIT, async (t) => {
    const sent = createHash('shake256', { outputLength: 200_000 }).update(seed).digest();
    const { server, client } = await serve(t);
    const echo = receiveAll(client.setNoDelay(true));
    for (let start = 0, end = 0; start < sent.length; start = end) {
      end = start + 1 + 10 * (sent[start] ?? 0);
      client.write(sent.subarray(start, end));
      if (end % 2 === 0) await setImmediate(); // else the pieces may arrive as one
    }
    client.end();
    assert.ok((await echo).equals(sent));
    assertEnded(await server.ended);
  });

  for (const who of ['the client does not read', 'stdout is not read']) {
    test(`as long as ${who}, the client is held back, and memory stays flat`, LIMIT, async (t) => {
      const { server, client } = await serve(t);
      const before = peakMemory(server.process);
      if (who.startsWith('stdout')) client.resume();
      server.process.stdout?.[who.startsWith('stdout') ? 'pause' : 'destroy'](); // not to keep all that is printed
      assert.ok(await takenFrom(client) < OFFERED, 'the server took all of it');
      server.process.stdout?.destroy();
      client.resume();
      while (client.bytesRead < OFFERED) await once(client, 'data');
      const grown = peakMemory(server.process) - before;
      assert.ok(grown < 56 << 20, `it grew by ${grown} bytes`);
    });
  }

  test('a client that closes while stdout is not read gets the whole echo once it is read', LIMIT, async (t) => {
    const { server, client } = await serve(t);
    const echo = receiveAll(client);
    await blockStdout(server, client);
    client.end();
    await setTimeout(300); // so that the EOF reaches the server
    server.process.stdout?.resume();
    assert.equal((await echo).length, BLOCKING);
    assertEnded(await server.ended);
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
    assertEnded(ended, 1, LOST);
    assert.match(ended.stdout, /\nIncoming connection from unknown:0\.\.\.\n/);
  });

  const RESETS: [when: string, prepare: (client: Socket, server: Running) => Promise<unknown>][] = [
    ['before it sends', async () => {}],
    ['while its bytes are on the way', (client) => (client.write('x'.repeat(16 << 20)), once(client, 'data'))],
    ['with the echo unread', (client, server) => (client.pause().write('Hello'), server.printed(/Hello/))],
    ['while it is held back', (client) => takenFrom(client)],
    ['after its FIN', async (client, { process }) => {
      process.kill('SIGSTOP'); // so that it can't read the FIN before the RST
      await inState(process, 'T');
      await once(client.pause().end('Hello'), 'finish');
    }],
  ];
  for (const [when, prepare] of RESETS) {
    test(`if a client resets ${when}, the connection is lost, and the status is 1`, LIMIT, async (t) => {
      const { server, client } = await serve(t);
      await server.printed(/Incoming connection/);
      await prepare(client, server);
      client.resetAndDestroy();
      server.process.kill('SIGCONT');
      assertEnded(await server.ended, 1, LOST);
    });
  }

  test('if stdout and stderr are one slow pipe, the error is the last line', LIMIT, async (t) => {
    const { printed, ended, go } = startWithSlowReader(t, node('server.ts', '127.0.0.1', '0'));
    const [, port] = await printed(/ port (\d+)\n/);
    const client = await dial(t, Number(port));
    await new Promise((sent) => client.write(Buffer.alloc(30_000), sent)); // printed as \x00, too much for a pipe
    client.resetAndDestroy();
    await setTimeout(500); // so that the reset reaches the server while stdout is blocked
    go();
    assert.match((await ended).stdout, new RegExp(`\n${BYE}${LOST.source.slice(1)}`));
  });

  test('if stdout is closed, the echo goes on, and the status is 0', LIMIT, async (t) => {
    const { server, client } = await serve(t);
    server.process.stdout?.destroy();
    assert.equal(String(await receiveAll(client.end('Hello World!'))), 'Hello World!');
    assert.deepEqual({ ...await server.ended, stdout: '' }, { status: 0, stdout: '', stderr: '' });
  });

  test('if the disk is full, the echo goes on, one error is shown, the status is 1', on(noFullDisk()), async (t) => {
    const port = await closedPort();
    const server = start(t, onFullDisk(node('server.ts', '127.0.0.1', `${port}`)));
    await reported(server); // so it listens
    const client = await dial(t, port);
    assert.equal(String(await receiveAll(client.end('Hello World!'))), 'Hello World!');
    assert.deepEqual(await server.ended, { status: 1, stdout: '', stderr: 'server.ts: cannot print (ENOSPC)\n' });
  });

  for (const [signal, what] of ['SIGINT', 'SIGTERM'].flatMap((name) => [[name, 'waits'], [name, 'serves']] as const)) {
    test(`${signal} ends a server that ${what}, with status 0`, LIMIT, async (t) => {
      const { server, port } = await startServer(t);
      const eof = what === 'serves' && receiveAll(await dial(t, port));
      if (eof) await server.printed(/Incoming connection/);
      process.kill(server.process.pid ?? 0, signal);
      assertEnded(await server.ended);
      await eof;
    });
  }

  test('SIGTERM ends a server whose stdout is not read, with status 0', LIMIT, async (t) => {
    const { server, client } = await serve(t);
    await blockStdout(server, client);
    server.process.kill('SIGTERM');
    assert.deepEqual(await once(server.process, 'exit'), [0, null]);
    server.process.stdout?.resume();
  });

  test('SIGTERM ends a server that waits for a name server, by the signal', on(noNameServer()), async (t) => {
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
  const REFUSING: [what: string, host: string, port: string, code: string, skip: string | false][] = [
    ['a host that does not resolve', `${'x'.repeat(64)}.test`, '0', 'ENOTFOUND', false], // no name server is asked
    ['an address of another machine', '192.0.2.1', '65535', 'EADDRNOTAVAIL', false],
    ['a link-local address without its zone', 'fe80::1', '0', 'EINVAL', notLinux('says EINVAL') || noIPv6()],
    ['a port in use', '127.0.0.1', 'in use', 'EADDRINUSE', false],
    ['a reserved port', '127.0.0.1', '80', 'EACCES', cannotRun(...reserve('true'))],
  ];
  for (const [what, host, port, code, skip] of REFUSING) {
    test(`${what} is an error with host, port and ${code}`, on(skip), async (t) => {
      const number = port === 'in use' ? `${await listen(t, () => {})}` : port;
      const command = node('server.ts', host, number);
      const stderr = `server.ts: cannot listen on ${host} port ${number} (${code})\n`;
      assert.deepEqual(await run(t, port === '80' ? reserve(...command) : command), { status: 1, stdout: '', stderr });
    });
  }

  const MISTAKES: [place: string, code: string, mistake: string, error: RegExp][] = [
    ['serve()', 'await sendAll(', 'await sendAl(', /^ReferenceError: sendAl is not defined\n +at serve \(.*\.js:\d+/],
    ['a listener', 'process.exit();', 'proces.exit();',
      /^ReferenceError: proces is not defined\n +at process\.endAtSignal \(/],
  ];
  for (const [place, code, mistake, error] of MISTAKES) {
    test(`an unexpected error in ${place} is shown with its place, and nothing printed is lost`, LIMIT, async (t) => {
      const server = start(t, edited('server.ts', code, mistake, '127.0.0.1', '0'));
      const [, port] = await server.printed(/ port (\d+)\n/);
      await blockStdout(server, await dial(t, Number(port)));
      if (place === 'a listener') server.process.kill();
      server.process.stdout?.resume();
      const { status, stdout, stderr } = await server.ended;
      assert.equal(status, 1);
      assert.match(stderr, error);
      assert.ok(stdout.includes(`\n${BYE}`), 'something printed is lost');
    });
  }

  test('an IPv4 TCP socket is bound to the address, and listens with a backlog of 1', on(noStrace()), async (t) => {
    const port = await closedPort();
    const server = start(t, ['strace', '-f', '--seccomp-bpf', '-qq', '-e', 'trace=socket,bind,listen,accept4',
      '-e', 'signal=none', '-o', '|cat >&2', ...node('server.ts', '127.0.0.1', `${port}`)]);
    await server.printed(/\n/);
    (await dial(t, port)).end();
    const calls = (await server.ended).stderr.replace(/^\d+ +| +(?==)/gm, '').split('\n');
    assert.match(calls.filter((call) => /= \d+$/.test(call)).join('\n'), new RegExp([ // not EAGAIN, and not interrupted
      String.raw`^socket\(AF_INET, SOCK_STREAM\S*, IPPROTO_(?:IP|TCP)\)= (\d+)`,
      String.raw`bind\(\1, \{sa_family=AF_INET, sin_port=htons\(${port}\), sin_addr=inet_addr\("127.0.0.1"\)}, 16\)= 0`,
      String.raw`listen\(\1, 1\)= 0`,
      String.raw`accept4\(\1, .*\)= \d+$`,
    ].join('\n')));
  });

  const CLIENTS: [commandLine: string, skip: string | false][] = [
    ['nc -N 127.0.0.1 ', noNc()],
    ['ncat 127.0.0.1 ', cannotRun('ncat', '--version')],
    ['socat -t 20 - TCP:127.0.0.1:', cannotRun('socat', '-V')],
  ];
  for (const [commandLine, skip] of CLIENTS) {
    test(`${commandLine.replace(/ .*/, '')} gets back what it sends`, on(skip), async (t) => {
      const { server, port } = await startServer(t);
      const client = await run(t, ['sh', '-c', `printf añ€😀 | ${commandLine}${port}`]);
      assert.deepEqual(client, { status: 0, stdout: 'añ€😀', stderr: '' });
      assert.equal(afterConnection((await server.ended).stdout), lines('añ€😀'));
    });
  }

  test('-h and --help print the usage, whatever else is given', LIMIT, async (t) => {
    for (const args of [['--help'], ['127.0.0.1', '80', 'more', '-h']]) {
      const { stdout, ...rest } = await run(t, node('server.ts', ...args));
      assert.deepEqual(rest, { status: 0, stderr: '' });
      assert.match(stdout, /^Usage: .* server\.ts \[host\] \[port\]\n.* localhost\)\n.*0 to 65535; .* 54321\)\n$/);
    }
  });

  const ARGUMENTS: [rule: string, message: string, ...commands: string[][]][] = [
    ['a port is a number from 0 to 65535', '".*" is not a port from 0 to 65535',
      ...['', ' 0', '80.5', '65536', '000080'].map((port) => ['127.0.0.1', port])],
    ['a host is not a number, and has no port and no brackets', '".*" is neither a name nor an address',
      ...['8080', '0', 'localhost:80', '[::1]', '[127.0.0.1]'].map((host) => [host, '0'])],
    ['an option is known', String.raw`unknown option "-\\x1b"`, ['127.0.0.1', '0', '-\x1b']], // escaped
    ['after "--", the same', '"x" is not a port.*', ['--', '127.0.0.1', 'x']],
    ['there is no third argument', 'unexpected argument ""', ['127.0.0.1', '0', '']],
  ];
  for (const [rule, message, ...commands] of ARGUMENTS) {
    test(`arguments that break a rule are refused with status 2: ${rule}`, LIMIT, async (t) => {
      for (const ended of commands.map((args) => run(t, node('server.ts', ...args)))) {
        const { status, stdout, stderr } = await ended;
        assert.deepEqual([status, stdout], [2, '']);
        assert.match(stderr, new RegExp(`^server\\.ts: ${message}\nUsage: npx ts-node server\\.ts .*\n`));
      }
    });
  }
});
