/** The rules that the three scripts share, about arguments, output and errors. */
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { describe, test, type TestContext } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import { closedPort, dialSoon, listen } from './peers';
import { edited, intoPipe, LIMIT, needsPipe, node, run, scratch, start } from './scripts';

type Script = 'server.ts' | 'client.ts' | 'portscanner.ts';
const USAGE: Record<Script, string> = {
  'server.ts': `Usage: npx ts-node server.ts [host] [port]
  host  address or name (looked up as IPv4) to listen on; '' for every IPv4 address (default: localhost)
  port  0 to 65535; 0 lets the system choose (default: 54321)\n`,
  'client.ts': `Usage: npx ts-node client.ts [host] [port] [message]
  host     address or name (looked up as IPv4) of the server (default: localhost)
  port     1 to 65535 (default: 54321)
  message  any text, sent as UTF-8 (default: Hello World!)\n`,
  'portscanner.ts': 'Usage: npx ts-node portscanner.ts -H <host> -p <ports> [-t <seconds>] [--open]\n',
};
const FAILED: Record<Script, number> = { 'server.ts': 1, 'client.ts': 1, 'portscanner.ts': 2 }; // the exit status
const SCRIPTS = Object.keys(USAGE) as Script[];

/** The command line of a script with this host and port. */
const withHost = (script: Script, host: string, port = '1') =>
  node(script, ...(script === 'portscanner.ts' ? [`--host=${host}`, '-p', port] : [host, port]));

const notHost = (script: Script, host: string) =>
  (script === 'portscanner.ts' ? `-H needs a host name or IP address, got "${host}"`
    : `"${host}" is neither a host name nor an IP address`);
const notPort = (port: string, first: number): [string[], string] =>
  [['localhost', port], `"${port}" is not a port from ${first} to 65535`];
const HOST = ['-H', 'localhost'];
const BOTH = [...HOST, '-p', '80'];
const notPorts = (ports: string, part = ports): [string[], string] =>
  [[...HOST, '-p', ports], `-p needs ports from 1 to 65535 or ranges such as 8000-8100, got "${part}"`];
const notSeconds = (text: string): [string[], string] =>
  [[...BOTH, '-t', text], `-t needs a number of seconds above 0 and at most 3600, got "${text}"`];

const REFUSED: [script: Script, ...refusals: [args: string[], message: string][]][] = [
  ['server.ts', ...['', '65536', '000080', '1\\n2'].map((port) => notPort(port, 0)),
    [['127.0.0.1', '0', ''], 'unexpected argument ""']],
  ['client.ts', ...['', '0', '65536', '1e3', '000080'].map((port) => notPort(port, 1)),
    [['localhost', '80', ''], 'the message is empty: nothing would come back'],
    [['localhost', '80', 'message', ''], 'unexpected argument ""']],
  ['portscanner.ts',
    [['-p', '80'], 'both -H and -p are required'],
    [HOST, 'both -H and -p are required'],
    ...['0', '65536', '20-10', '1-2-3', '1000020000'].map((ports) => notPorts(ports)), notPorts('80,-,', ''),
    ...['0', '3600.1', '1e1'].map(notSeconds),
    [['-host', 'localhost', '-p', '80'], 'Unknown arguments: o, s'],
    [[...BOTH, '--open=xyz'], 'Argument unexpected for: open'],
    [[...BOTH, '--no-open', '--a-b', '--open.x', '--version'], 'Unknown arguments: no-open, a-b, open.x, version'],
    [['–p', '80', ...HOST], 'unexpected argument "–p"'],
    [[...BOTH, '443'], 'unexpected argument "443"; separate ports with commas']],
];

describe('all three scripts', { concurrency: 4 }, () => {
  for (const [script, ...refusals] of REFUSED) {
    for (const [args, message] of refusals) {
      test(`${script} refuses '${args.join("' '")}' with its usage and status 2`, LIMIT, async (t) => {
        const given = args.map((arg) => arg.replace('\\n', '\n')); // a newline is reported as \n, and all in English
        assert.deepEqual(await run(t, node(script, ...given), { LC_ALL: 'de_DE.UTF-8' }), {
          status: 2, stdout: '', stderr: `${script}: ${message}\n${USAGE[script]}`,
        });
      });
    }
  }

  for (const script of SCRIPTS) {
    test(`${script} refuses a host that looks like a number but is not an IP address, or like an option`, LIMIT,
      async (t) => {
        const hosts = ['127.1', 'a.0xF', '127。1', '-\x1b', ...(script === 'server.ts' ? [] : [''])];
        for (const host of hosts) {
          const message = notHost(script, host.replace('\x1b', '\\u{1b}'));
          assert.deepEqual(await run(t, withHost(script, host)), {
            status: 2, stdout: '', stderr: `${script}: ${message}\n${USAGE[script]}`,
          });
        }
      });

    test(`a host with a newline that ${script} can't look up is reported in one line`, LIMIT, async (t) => {
      const long = 'x'.repeat(64); // no name server is asked for a label of more than 63 characters
      const { status, stdout, stderr } = await run(t, withHost(script, `a\n${long}:80`, '65535'));
      assert.equal(stderr, `${script}: getaddrinfo ENOTFOUND a\\n${long}:80\n`);
      assert.deepEqual([status, stdout], [FAILED[script], '']);
    });

    test(`-h and --help print the usage of ${script}`, LIMIT, async (t) => {
      const { stdout, ...end } = await run(t, node(script, '-h'));
      const options = script === 'portscanner.ts' ? '.*-H, --host .*-p, --port .*-t, --timeout .*"3".*--open ' : '$';
      assert.ok(stdout.startsWith(USAGE[script]), stdout);
      assert.match(stdout.slice(USAGE[script].length), new RegExp(`^${options}`, 's'));
      assert.deepEqual(end, { status: 0, stderr: '' });
      assert.deepEqual(await run(t, node(script, '--help')), { ...end, stdout });
    });
  }

  /** A port, and arguments with which a script has something to do: the client's server sends half of an echo. */
  async function arranged(t: TestContext, script: Script): Promise<{ port: number; args: string[] }> {
    const port = script === 'server.ts' ? await closedPort()
      : await listen(t, (socket) => socket.once('data', () => socket.end('Hello ')));
    return { port, args: [...(script === 'portscanner.ts' ? ['-H', '127.0.0.1', '-p'] : ['127.0.0.1']), `${port}`] };
  }

  const NO_OUTPUT: [what: string, redirection: string, error: string, skip: string | false][] = [
    ['ends silently if the reader of stdout leaves', '', '', false],
    ['says once that the disk is full', '> /dev/full', 'ENOSPC: no space left on device, write',
      !existsSync('/dev/full') && 'there is no /dev/full'],
  ];
  for (const script of SCRIPTS) {
    for (const [what, redirection, error, skip] of NO_OUTPUT) {
      test(`${script} ${what}, and the status is ${FAILED[script]}`, { ...LIMIT, skip }, async (t) => {
        const { args } = await arranged(t, script);
        const program = start(t, ['sh', '-c', `exec "$@" ${redirection}`, 'sh', ...node(script, ...args)]);
        program.process.stdout?.destroy();
        const stderr = error && `${script}: ${error}\n`;
        assert.deepEqual(await program.ended, { status: FAILED[script], stdout: '', stderr });
      });
    }
  }

  for (const [script, output, error] of [
    ['server.ts', 'Server .*\nIncoming .*\n', 'read ECONNRESET'],
    ['client.ts', 'Connected .*\nSending .*\n.* Hello \nConnection closed.\n', 'server closed after 6 of 12 bytes'],
    ['portscanner.ts', 'Connecting .*\n', 'connect ENETUNREACH 224.0.0.1:1 - Local .*'],
  ] as const) {
    for (const [what, stderr] of [['follows its output', 'same pipe'], ['is reported once', 'file']] as const) {
      test(`an error of ${script} while stdout is blocked ${what}`, needsPipe, async (t) => {
        const { port, args } = await arranged(t, script);
        const mark = join(scratch(t), 'mark');
        const marking = `require('node:fs').writeFileSync('${mark}', ''); let report`;
        const given = script === 'portscanner.ts' ? ['-H', '224.0.0.1', '-p', '1-5000'] : args; // multicast fails
        const { program, read, leave } = intoPipe(t, edited(script, 'let report', marking, ...given), stderr);
        if (script === 'server.ts') (await dialSoon(t, port)).resetAndDestroy();
        while (!existsSync(mark)) await setTimeout(10);
        const printed = stderr === 'file' ? await leave() : await read();
        assert.match(printed, new RegExp(`^${stderr === 'file' ? '' : output}${script}: ${error}\n$`));
        assert.equal(program.exitCode, FAILED[script]);
      });
    }
  }

  for (const [what, script, before, after, message] of [
    ['serve()', 'server.ts', 'await lookup(', 'await lokup(', 'lokup is not defined'],
    ['talk()', 'client.ts', 'connection.write(', 'connection.wriet(', 'connection.wriet is not a function'],
    ['probe()', 'portscanner.ts', 'socket.connect(port', 'socket.conect(port', 'socket.conect is not a function'],
    ['a callback', 'portscanner.ts', 'socket.localPort', 'socket.localPort()', 'socket.localPort is not a function'],
  ] as const) {
    test(`a bug in ${what} of ${script} is shown with its location`, LIMIT, async (t) => {
      const { status, stderr } = await run(t, edited(script, before, after, ...(await arranged(t, script)).args));
      assert.match(stderr, new RegExp(`^\\w+Error: ${message}\n( +at .*\n)+$`));
      assert.match(stderr, new RegExp(`${script.replace('.ts', '.js')}:\\d+:\\d+`));
      assert.equal(status, FAILED[script]);
    });
  }
});
