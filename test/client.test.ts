import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createReadStream } from 'node:fs';
import type { Socket } from 'node:net';
import { describe, test, type TestContext } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import {
  ABSENT, inNetwork, listenAt, noLoopback, noNameServer, noNetwork, noOffline, offline, QUICK_ARP, rule, selfConnecting,
  TARGET, withSilentNameServer,
} from './network';
import { accepted, closedPort, documentedServer, listen, receiveAll } from './peers';
import {
  cannotRun, edited, type Ended, inState, LIMIT, node, noFullDisk, noIPv6, noNc, onFullDisk, run, scratch, start,
  startServer, startWithSlowReader,
} from './scripts';

const HELLO = 'Hello World!'; // the message, if none is given
const LONG = 'añ€😀'.repeat(12_000); // 120,000 bytes
const IPV4 = '127.0.0.1';

const client = (port: number, ...message: string[]) => node('client.ts', IPV4, `${port}`, ...message);

/** The same if the timeout is not 10 s. */
const withTimeout = (seconds: number, port: number, message = HELLO, host = IPV4) =>
  edited('client.ts', 'TIMEOUT = 10', `TIMEOUT = ${seconds}`, host, `${port}`, message);

/** What the client prints if the server at the port sends this reply, or none. */
const conversation = (port: number, reply?: string, host = IPV4) =>
  `Connected to server: ${host} on port ${port}\nSending some data...\n`
  + `${reply === undefined ? '' : `Response from server: ${reply}\n`}Connection closed.\n`;

/** What the client leaves behind if the reply is the message. */
const success = (port: number, message = HELLO, host?: string): Ended =>
  ({ status: 0, stdout: conversation(port, message, host), stderr: '' });

/** What the client leaves behind after an error. */
const failed = (error: string, stdout = ''): Ended => ({ status: 1, stdout, stderr: `client.ts: ${error}\n` });

// What a server may do: wait for data, and then send this reply and close; or send back what arrives, and never close.
const replying = (reply: string) => (socket: Socket) => socket.once('data', () => socket.end(reply));
const repeating = (socket: Socket) => socket.on('data', (message) => socket.write(message));

/** Resolves when the system has taken the bytes. Over loopback, it has then woken up a client that waits for them. */
const sent = (socket: Socket, bytes: string | Buffer) => new Promise((resolve) => socket.write(bytes, resolve));

type Serve = (t: TestContext) => Promise<number>; // starts a server, and resolves to its port

/** A server that is a command line of sh, with a folder as $0 and the port as $1, and says when it listens. */
const program = (commandLine: string): Serve => async (t) => {
  const port = await closedPort();
  await start(t, ['sh', '-c', `exec 2>&1; ${commandLine}`, scratch(t), `${port}`]).printed(/listening on/i);
  return port;
};

const needsNetwork = { ...LIMIT, skip: noNetwork() };

describe('client.ts', { concurrency: 4 }, () => {
  const SERVERS: [server: string, serve: Serve, message?: string, host?: string, skip?: string | false][] = [
    ['that works like the Python original', (t) => listen(t, documentedServer)],
    ['that has an IPv6 address', (t) => listen(t, documentedServer, '::1'), HELLO, '::1', noIPv6()],
    ['like server.ts', async (t) => (await startServer(t)).port, LONG],
    ['made of nc', program('mkfifo $0/loop; nc -v -l -N 127.0.0.1 $1 < $0/loop | tee $0/loop'), LONG, IPV4, noNc()],
    ['made of ncat', program('exec ncat -v -l 127.0.0.1 $1 -e /bin/cat'), LONG, IPV4, cannotRun('ncat', '--version')],
    ['made of socat', program('exec socat -d -d TCP-LISTEN:$1,bind=127.0.0.1 EXEC:cat'), LONG, IPV4,
      cannotRun('socat', '-V')],
    ['that sends a byte at a time', (t) => listen(t, async (socket) => {
      const [message] = await once(socket.setNoDelay(true), 'data') as [Buffer];
      for (const byte of message) await sent(socket, Buffer.of(byte));
      socket.end();
    }), 'Grüße 😀'],
    ['that answers only when it has the whole message', (t) => listen(t, (socket) => {
      let missing = 120_000;
      socket.on('data', (piece) => { if ((missing -= piece.length) === 0) socket.end(LONG); });
    }), LONG],
    ['that sends something within each timeout', (t) => listen(t, async (socket) => {
      await setTimeout(2500);
      socket.resume().write('Hello');
      await setTimeout(2500);
      socket.end(' World!');
    })],
    ['that needs the connection until it has sent the whole reply', (t) => listen(t, async (socket) => {
      const ended = once(socket.resume(), 'end');
      socket.write('Hello World');
      assert.equal(await Promise.race([ended, setTimeout(500, 'no FIN')]), 'no FIN'); // or listen() destroys it
      socket.end('!');
    })],
    ['that does not close after the reply', (t) => listen(t, repeating)],
    ['that resets after the reply', (t) => listen(t, (it) => repeating(it).on('end', () => it.resetAndDestroy()))],
  ];
  for (const [server, serve, message = HELLO, host = IPV4, skip = false] of SERVERS) {
    test(`the client talks with a server ${server}`, { ...LIMIT, skip }, async (t) => {
      const port = await serve(t);
      assert.deepEqual(await run(t, withTimeout(4, port, message, host)), success(port, message, host));
    });
  }

  const MESSAGES: [how: string, commandLine: typeof node, messages: string[]][] = [
    ['as it is', node, ['', ' ', '--help', '\ufeffBOM, two\nlines, العربية and 汉语', '"$(id)" \'`id`\' \\']],
    ['as it is after "--"', (script, ...args) => node(script, '--', ...args), ['--', '--help']],
  ];
  for (const [how, commandLine, messages] of MESSAGES) {
    test(`a message of any characters is sent ${how}`, LIMIT, async (t) => {
      for (const message of messages) {
        const port = await listen(t, documentedServer);
        assert.deepEqual(await run(t, commandLine('client.ts', IPV4, `${port}`, message)), success(port, message));
      }
    });
  }

  for (const first of [HELLO, 'Hello']) {
    test(`a client suspended beyond the timeout gets the reply ("${first}" came meanwhile)`, LIMIT, async (t) => {
      const { port, connection } = await accepted(t);
      const talk = start(t, withTimeout(4, port));
      const server = await connection;
      await once(server.on('end', () => server.end()), 'data');
      await inState(talk.process, 'S'); // it waits for the reply
      talk.process.kill('SIGSTOP');
      await inState(talk.process, 'T');
      await sent(server, first);
      await setTimeout(4500);
      talk.process.kill('SIGCONT');
      if (first !== HELLO) await setTimeout(500); // a client that gives up has done so by now
      if (first !== HELLO) server.write(HELLO.slice(first.length));
      assert.deepEqual(await talk.ended, success(port));
    });
  }

  const REPLIES: [does: string, talk: (socket: Socket) => unknown, error: string, reply?: string, sent?: string][] = [
    ['closes during the reply', replying('Hello'), 'server closed after 5 of 12 bytes', 'Hello'],
    ['closes without a reply', replying(''), 'server closed after 0 of 12 bytes'],
    ['sends other bytes', replying('Hello world!'), 'the reply differs from the message', 'Hello world!'],
    ['sends bytes that look the same', replying('\x1b'), 'server closed after 1 of 4 bytes', '\\x1b', '\\x1b'],
    ['sends more', replying(`${HELLO}!`), 'server sent more than the 12 bytes of the message', `${HELLO}!`],
    ['sends more after the client\'s FIN', (socket) => repeating(socket).on('end', () => socket.end('!')),
      'server sent more than the 12 bytes of the message', `${HELLO}!`], // the client reads until EOF
    ['answers an empty message', (socket) => socket.on('end', () => socket.end('?')).resume(),
      'server sent more than the 0 bytes of the message', '?', ''],
    ['resets', (socket) => socket.once('data', () => socket.resetAndDestroy()), 'connection lost (ECONNRESET)'],
    ['is silent', (socket) => socket.resume(), 'nothing arrived from 127.0.0.1 port PORT for 4 s'],
    ['falls silent during the reply', (socket) => socket.resume().write('Hello'),
      'nothing arrived from 127.0.0.1 port PORT for 4 s', 'Hello'], // what arrived is printed
  ];
  for (const [does, talk, error, reply, message = HELLO] of REPLIES) {
    test(`a server that ${does} is an error`, LIMIT, async (t) => {
      const port = await listen(t, talk);
      const expected = failed(error.replace('PORT', `${port}`), conversation(port, reply));
      assert.deepEqual(await run(t, withTimeout(4, port, message)), expected);
    });
  }

  test('if the server resets during the reply, what arrived is printed', LIMIT, async (t) => {
    const { port, connection } = await accepted(t);
    const talk = start(t, client(port));
    const server = await connection;
    await sent(server, 'Hello');
    await inState(talk.process, 'S'); // it waits for more
    server.resetAndDestroy();
    assert.deepEqual(await talk.ended, failed('connection lost (ECONNRESET)', conversation(port, 'Hello')));
  });

  test('a server that never stops sending is left', LIMIT, async (t) => {
    const port = await listen(t, (connection) => createReadStream('/dev/zero').pipe(connection));
    const { stdout, ...end } = await run(t, client(port));
    assert.deepEqual({ ...end, stdout: '' }, failed('server sent more than the 12 bytes of the message'));
    assert.match(stdout, /\nResponse from server: (\\x00){13,65536}\nConnection closed\.\n$/);
  });

  const SMALL_SOCKETS = 'echo 4096 4096 4096 | tee /proc/sys/net/ipv4/tcp_rmem > /proc/sys/net/ipv4/tcp_wmem\n';
  const TOO_LONG: [what: string, server: string, expected: Ended][] = [
    ['a server that closes and reads nothing is left', '(connection) => connection.end()',
      failed('server closed after 0 of 120000 bytes', conversation(80))],
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
    const reply = '\0\b\t\n\v\f\r\x1b[31m\x1f ~\x7f\x80\x9f\xa0\u2029\u202a\u202e\u202f\u2065\u2066\u2069\u206a';
    const port = await listen(t, replying(reply));
    const { stdout } = await run(t, client(port));
    assert.equal(stdout, conversation(port, '\\x00\\x08\t\n\\x0b\\x0c\\x0d\\x1b[31m\\x1f ~\\x7f\\x80\\x9f\xa0'
      + '\u2029\\u202a\\u202e\u202f\u2065\\u2066\\u2069\u206a'));
  });

  const NO_NAME = `${'x'.repeat(64)}.test`; // it has more than 63 characters: no name server is asked
  const UNREACHABLE: [what: string, commandLine: string[], error: string, skip?: string | false][] = [
    ['a host that does not exist', inNetwork(QUICK_ARP, node('client.ts', ABSENT, '80')),
      `connection to ${ABSENT} port 80 failed (EHOSTUNREACH)`, noNetwork()],
    ['a host that drops packets', inNetwork(rule('80', 'DROP'), withTimeout(1, 80, HELLO, TARGET)),
      `nothing arrived from ${TARGET} port 80 for 1 s`, noNetwork()],
    ['a link-local address without its zone', offline(node('client.ts', 'fe80::1', '80')), // or Node may guess
      'connection to fe80::1 port 80 failed (EINVAL)', noOffline()],
    ['port 1 of an unknown name', node('client.ts', NO_NAME, '1'),
      `connection to ${NO_NAME} port 1 failed (ENOTFOUND)`],
    ['port 65535 of an unknown name', node('client.ts', NO_NAME, '65535'),
      `connection to ${NO_NAME} port 65535 failed (ENOTFOUND)`],
    ['a lookup that fails after more than the timeout', withSilentNameServer(withTimeout(1, 80, HELLO, 'example.test')),
      'connection to example.test port 80 failed (EAI_AGAIN)', noNameServer()],
    ['a connection of the client to itself', selfConnecting(node('client.ts')), 'connection to localhost port 54321 '
      + 'failed (ECONNREFUSED): nothing listens, TCP connected it to itself', noLoopback()],
  ];
  for (const [what, commandLine, error, skip = false] of UNREACHABLE) {
    test(`${what} is an error`, { ...LIMIT, skip }, async (t) => {
      assert.deepEqual(await run(t, commandLine), failed(error));
    });
  }

  test('a refused connection is an error', LIMIT, async (t) => {
    const port = await closedPort();
    assert.deepEqual(await run(t, client(port)), failed(`connection to 127.0.0.1 port ${port} failed (ECONNREFUSED)`));
  });

  test('a connection to the same port of another host is none to itself', needsNetwork, async (t) => {
    const setup = `echo 54321 54321 > /proc/sys/net/ipv4/ip_local_port_range
      ${listenAt([54321], 'on target', '(connection) => connection.pipe(connection)')}`;
    assert.deepEqual(await run(t, inNetwork(setup, node('client.ts', TARGET))), success(54321, HELLO, TARGET));
  });

  const NO_OUTPUT: [what: string, commandLine: (it: string[]) => string[], expected: Ended, skip: string | false][] = [
    ['stdout is closed', (it) => it, { status: 0, stdout: '', stderr: '' }, false],
    ['the disk is full', onFullDisk, failed('cannot print (ENOSPC)'), noFullDisk()],
  ];
  for (const [what, commandLine, expected, skip] of NO_OUTPUT) {
    test(`if ${what}, the echo goes on`, { ...LIMIT, skip }, async (t) => {
      const { port, connection } = await accepted(t);
      const talk = start(t, commandLine(client(port)));
      talk.process.stdout?.destroy();
      const server = await connection;
      await inState(talk.process, 'S'); // it has tried to print, and waits for the reply
      server.write(HELLO);
      assert.equal(String(await receiveAll(server)), HELLO); // up to EOF: it would reject at a reset
      server.end();
      assert.deepEqual(await talk.ended, expected);
    });
  }

  test('if stdout and stderr are one slow pipe, the error is the last line', LIMIT, async (t) => {
    const { port, connection } = await accepted(t);
    const { ended, go } = startWithSlowReader(t, client(port, '\x1b'.repeat(120_000)));
    await once((await connection).resume().end('\x1b'.repeat(80_000)), 'close'); // printed as \x1b, too much for a pipe
    await setTimeout(500); // so that the client reaches the error
    go();
    const error = 'client.ts: server closed after 80000 of 120000 bytes\n';
    const stdout = conversation(port, '\\x1b'.repeat(80_000)) + error;
    assert.deepEqual(await ended, { status: 0, stdout, stderr: '' }); // the reader's status
  });

  const TYPOS = [['talk', 'connection.write', 'connection.wriet'], ['receive', 'piece.length', 'piece.len()']] as const;
  for (const [where, before, after] of TYPOS) {
    test(`an exception that is not expected is shown with its place: ${where}`, LIMIT, async (t) => {
      const port = await listen(t, documentedServer);
      const { status, stderr } = await run(t, edited('client.ts', before, after, IPV4, `${port}`));
      assert.match(stderr, RegExp(`^TypeError: \\S+ is not a function\n +at ${where} \\(.+:\\d+:\\d+\\)\n`));
      assert.equal(status, 1);
    });
  }

  const USAGE = `Usage: npx ts-node client.ts [host] [port] [message]
  host     address or name (looked up as IPv4) of the server (default: localhost)
  port     1 to 65535 (default: 54321)
  message  any text, sent as UTF-8 (default: Hello World!)\n`;

  for (const args of [['-h'], ['localhost', '--help']]) {
    test(`client.ts ${args.join(' ')} prints the usage`, LIMIT, async (t) => {
      assert.deepEqual(await run(t, node('client.ts', ...args)), { status: 0, stdout: USAGE, stderr: '' });
    });
  }

  const notHosts = ['', '8080', 'localhost:80', '[::1]', '[localhost]'];
  const notPorts = ['', '0', '65536', '1e3', '000080'];
  const REFUSED: [args: string[], error: string][] = [
    [['--\x1b[2J', '--'], 'unknown option "--\\x1b[2J"'],
    [['localhost', '-1'], 'unknown option "-1"'],
    [['localhost', '80', 'message', ''], 'unexpected argument ""'],
    ...notHosts.map((host): [string[], string] => [[host], `"${host}" is neither a name nor an address`]),
    ...notPorts.map((port): [string[], string] => [['localhost', port], `"${port}" is not a port from 1 to 65535`]),
  ];
  for (const [args, error] of REFUSED) {
    test(`client.ts ${args.map((arg) => JSON.stringify(arg)).join(' ')} is refused`, LIMIT, async (t) => {
      const stderr = `client.ts: ${error}\n${USAGE}`;
      assert.deepEqual(await run(t, node('client.ts', ...args)), { status: 2, stdout: '', stderr });
    });
  }

  test('a message that is not UTF-8 is refused', LIMIT, async (t) => {
    const talk = await run(t, ['sh', '-c', 'exec "$@" "$(printf "\\377")"', 'sh', ...client(80)]);
    const stderr = `client.ts: the message is not UTF-8, or has a U+FFFD\n${USAGE}`;
    assert.deepEqual(talk, { status: 2, stdout: '', stderr });
  });
});
