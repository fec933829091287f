/** The rules that the scripts share, about arguments, output and errors. */
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { describe, test, type TestContext } from 'node:test';
import { listen } from './peers';
import { edited, LIMIT, node, run, start, startServer, unless } from './scripts';

type Script = 'server.ts' | 'client.ts' | 'portscanner.ts';
const USAGE: Record<Script, string> = {
  'server.ts': 'Usage: npx ts-node server.ts [host] [port]',
  'client.ts': 'Usage: npx ts-node client.ts [host] [port] [message]',
  'portscanner.ts': 'Usage: npx ts-node portscanner.ts -H <host> -p <ports> [-t <seconds>] [--open]',
};
const FAILED: Record<Script, number> = { 'server.ts': 1, 'client.ts': 1, 'portscanner.ts': 2 }; // the exit status
const SCRIPTS = Object.keys(USAGE) as Script[];

const notPort = (port: string, first: number) => `"${port}" is not a port from ${first} to 65535`;
const notPorts = (part: string) => `"${part}" is not a port or a range of ports from 1 to 65535`;
const NOT_SECONDS = '-t must be more than 0 and at most 3600 seconds';

const REFUSED: [script: Script, typed: string, message: string][] = [ // as typed in a shell, where '' is empty
  ['server.ts', 'example.org', '"example.org" is not an IP address'],
  ['server.ts', "''", '"" is not an IP address'],
  ['server.ts', "localhost ''", notPort('', 0)],
  ['server.ts', 'localhost 65536', notPort('65536', 0)],
  ['server.ts', 'localhost 1e3', notPort('1e3', 0)],
  ['server.ts', "localhost 0 ''", 'unexpected argument ""'],

  ['client.ts', '127.1', '"127.1" is not an IP address'],
  ['client.ts', "''", '"" is not an IP address'],
  ['client.ts', 'localhost 0', notPort('0', 1)],
  ['client.ts', 'localhost 65536', notPort('65536', 1)],
  ['client.ts', 'localhost 1e3', notPort('1e3', 1)],
  ['client.ts', "localhost 80 ''", 'the message is empty: nothing would come back'],
  ['client.ts', "localhost 80 Hello ''", 'unexpected argument ""'],

  ['portscanner.ts', '-p 80', 'Missing required argument: host'],
  ['portscanner.ts', '-H localhost', 'Missing required argument: port'],
  ['portscanner.ts', '-H localhost -p 80 -t', 'Not enough arguments following: t'],
  ['portscanner.ts', '-H localhost -p 80 --no-host --host.x', 'Unknown arguments: no-host, noHost, host.x'],
  ['portscanner.ts', '-H localhost -p 80 443', 'unexpected argument "443"'],
  ['portscanner.ts', '-H 127.1 -p 80', '"127.1" is not an IP address'],
  ['portscanner.ts', "-H '' -p 80", '"" is not an IP address'],
  ['portscanner.ts', '-H localhost -p 0', notPorts('0')],
  ['portscanner.ts', '-H localhost -p 65536', notPorts('65536')],
  ['portscanner.ts', '-H localhost -p 20-10', notPorts('20-10')],
  ['portscanner.ts', '-H localhost -p 1-2-3', notPorts('1-2-3')],
  ['portscanner.ts', '-H localhost -p 1e3', notPorts('1e3')],
  ['portscanner.ts', '-H localhost -p 80,', notPorts('')],
  ['portscanner.ts', '-H localhost -p 80 -t 0', NOT_SECONDS],
  ['portscanner.ts', '-H localhost -p 80 -t 3600.1', NOT_SECONDS],
  ['portscanner.ts', '-H localhost -p 80 -t soon', NOT_SECONDS],
];

/** The command line with which a script has something to print. */
async function printing(t: TestContext, script: Script, compile = node): Promise<string[]> {
  if (script === 'portscanner.ts') return compile(script, '-H', '127.0.0.1', '-p', '1');
  const port = script === 'server.ts' ? 0 : await listen(t, (socket) => socket.pipe(socket));
  return compile(script, '127.0.0.1', `${port}`);
}

describe('all three scripts', { concurrency: 4 }, () => {
  for (const [script, typed, message] of REFUSED) {
    test(`${script} refuses ${typed}, in English, with its usage and status 2`, LIMIT, async (t) => {
      const args = typed.split(' ').map((arg) => arg.replace("''", ''));
      const { status, stdout, stderr } = await run(t, node(script, ...args), { LC_ALL: 'de_DE.UTF-8' });
      assert.deepEqual(stderr.split('\n').slice(0, 2), [`${script}: ${message}`, USAGE[script]]);
      assert.deepEqual([status, stdout], [2, '']);
    });
  }

  for (const [script, ...mentioned] of [
    ['server.ts', '  host .*localhost', '  port .*54321'],
    ['client.ts', '  host .*localhost', '  port .*54321', '  message .*Hello World!'],
    ['portscanner.ts', '.*-H, --host', '.*-p, --port', '.*-t, --timeout .*3', '.*--open'],
  ] as const) {
    test(`-h and --help print the usage of ${script}, with the defaults`, LIMIT, async (t) => {
      const { status, stdout, stderr } = await run(t, node(script, '-h'));
      assert.deepEqual([status, stdout.split('\n')[0], stderr], [0, USAGE[script], '']);
      for (const line of mentioned) assert.match(stdout, new RegExp(`^${line}`, 'm'));
      assert.equal((await run(t, node(script, '--help'))).stdout, stdout);
    });
  }

  const NAME = 'x'.repeat(64); // no name server is asked for a label of more than 63 characters
  for (const [script, ...args] of [
    ['client.ts', NAME, '65535'], ['portscanner.ts', '-H', NAME, '-p', '65535'],
  ] as const) {
    test(`a name that ${script} can't look up is reported as the system call that failed`, LIMIT, async (t) => {
      assert.deepEqual(await run(t, node(script, ...args)), {
        status: FAILED[script], stdout: '', stderr: `${script}: getaddrinfo ENOTFOUND ${NAME}\n`,
      });
    });
  }

  test('server.ts and client.ts show what controls a terminal or turns text around as in a URL', LIMIT, async (t) => {
    const controls = '\n\t\r\x01\b\x1b\x1f\x7f\x80\x9f';
    const turning = '\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069';
    const others = ' ~%\xa0\u061b\u061d\u200d\u2010\u2029\u202f\u2065\u206a'; // their neighbours, which are shown
    const { server, port } = await startServer(t);
    const client = await run(t, node('client.ts', '127.0.0.1', `${port}`, controls + turning + others));
    const shown = encodeURIComponent(controls + turning) + others;
    assert.equal(client.stdout.split('\n')[2], `Response from server: ${shown}`);
    assert.equal((await server.ended).stdout.split('\n')[2], `Received following data: ${shown}`);
  });

  for (const script of SCRIPTS) {
    test(`${script} ends silently if the reader of stdout leaves, with status ${FAILED[script]}`, LIMIT, async (t) => {
      const program = start(t, await printing(t, script));
      program.process.stdout?.destroy();
      assert.deepEqual(await program.ended, { status: FAILED[script], stdout: '', stderr: '' });
    });

    const noFull = !existsSync('/dev/full') && 'there is no /dev/full';
    test(`${script} says once that the disk is full, with status ${FAILED[script]}`, unless(noFull), async (t) => {
      const intoFull = ['sh', '-c', 'exec "$@" > /dev/full', 'sh', ...await printing(t, script)];
      assert.deepEqual(await run(t, intoFull), {
        status: FAILED[script], stdout: '', stderr: `${script}: ENOSPC: no space left on device, write\n`,
      });
    });
  }

  for (const [script, before, after, message] of [
    ['server.ts', 'createServer({', 'creatServer({', 'creatServer is not defined'],
    ['client.ts', 'connection.write(', 'connection.wriet(', 'connection.wriet is not a function'],
    ['portscanner.ts', 'socket.connect(port', 'socket.conect(port', 'socket.conect is not a function'],
    ['portscanner.ts', "settle('closed');", "setle('closed');", 'setle is not defined'], // in a callback
  ] as const) {
    test(`a bug in ${script} (${message}) is shown with its location`, LIMIT, async (t) => {
      const compile = (name: string, ...args: string[]) => edited(name, before, after, ...args);
      const { status, stderr } = await run(t, await printing(t, script, compile));
      const file = script.replace('.ts', '.js');
      assert.match(stderr, new RegExp(`^\\w+Error: ${message}\n +at .*${file}:\\d+:\\d+.*\n( +at .*\n)*$`));
      assert.equal(status, FAILED[script]);
    });
  }
});
