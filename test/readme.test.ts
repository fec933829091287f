/** README.md holds: its examples print what it says, its tables agree with the scripts, its links lead somewhere. */
import assert from 'node:assert/strict';
import { copyFileSync, existsSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { constants } from 'node:os';
import { basename, join, resolve } from 'node:path';
import { describe, test, type TestContext } from 'node:test';
import { scripts } from '../package.json';
import { inNetwork, listenAt, NOBODY, noNetwork, rule, TARGET } from './network';
import {
  cannotRun, compile, LIMIT, node, noFullDisk, noNc, noSecondInBacklog, run, type Running, scratch, start, takeTurns,
  unshare,
} from './scripts';

const README = readFileSync('README.md', 'utf8');
/** An example starts up to six scripts, one after the other. */
const EXAMPLE_LIMIT = { timeout: 240_000 };
const SCRIPTS = ['portscanner.ts', 'server.ts', 'client.ts'];
const sources = (folder = '.') =>
  new Map(SCRIPTS.map((script) => [script, readFileSync(join(folder, script), 'utf8')]));

/** The blocks of code, in order: the language and the text of each. */
const BLOCKS = [...README.matchAll(/^```(\w*)\n([^]*?)\n```$/gm)]
  .map(([, language = '', text = '']) => ({ language, text }));
const blocks = (language: string) => BLOCKS.flatMap((block) => (block.language === language ? [block.text] : []));

/** The tables whose header begins with the titles, each a list of rows, each row a list of cells. */
function tables(...titles: string[]): string[][][] {
  const cells = (line: string) => line.split('|').slice(1, -1).map((cell) => cell.trim());
  return (README.match(/^(\|.*\|\n)+/gm) ?? []).map((table) => table.trimEnd().split('\n').map(cells))
    .filter(([header = []]) => titles.every((title, index) => header[index] === title))
    .map(([, , ...body]) => body);
}

/** The pieces of code in a cell. */
const codes = (cell = '') => [...cell.matchAll(/`([^`]+)`/g)].map(([, code = '']) => code);

// The examples: each block of console is one, run as it is printed.

/** What is typed into one terminal and what it prints: one command after the other. */
type Terminal = { command: string; output: string }[];

/** An example: the terminals, separated by blank lines, and the change of a script that comes before them. */
interface Example {
  terminals: Terminal[];
  change: string | undefined;
}

const EXAMPLES: Example[] = BLOCKS.flatMap(({ language, text }, index) => {
  if (language !== 'console') return [];
  const terminals = text.split(/\n\n(?=\$ )/).map((terminal) => terminal.split(/^\$ /m).slice(1).map((typed) => {
    const [, command = '', output = ''] = /^(.*)\n?([^]*)$/.exec(typed) ?? [];
    return { command: command.replaceAll(/\bsudo /g, ''), output: output.replace(/\n?$/, output && '\n') };
  }));
  const before = BLOCKS[index - 1];
  return [{ terminals, change: before?.language === 'diff' ? before.text : undefined }];
});

/**
 * A pattern for what a terminal prints. The system chooses some numbers, which the page gives as 58666 and 58667
 * (ports), 4711 (a process), 18 and 19 (file descriptors): each is one number, the same wherever it occurs.
 */
function pattern(output: string): RegExp {
  const seen = new Set<string>();
  const escaped = output.replace(/\^C/g, '').replace(/[\\^$.*+?()[\]{}|]/g, '\\$&');
  return new RegExp(`^${escaped.replace(/\b(5866[67]|4711|1[89](?= |\n|,|$))/g, (number) => {
    if (seen.has(number)) return `\\k<n${number}>`;
    seen.add(number);
    return `(?<n${number}>\\d+)`;
  })}$`);
}

/** Why lo can't be had in a network namespace here, in words; false if it can. */
const noLoopback = cannotRun(...unshare('--net'), 'ip', 'link', 'set', 'lo', 'up')
  || cannotRun('nsenter', '--net=/proc/self/ns/net', 'true');

/** Why a program that the command runs can't be run here, in words; false if each one can. */
function cannotTry(command: string): string | false {
  const needs: [RegExp, () => string | false][] = [
    [/^\(?(ulimit -n \d+; )?npx ts-node (portscanner|server|client)\.ts/, () => false],
    [/^echo \$\?$/, () => false],
    [/^strace .* npx ts-node (portscanner|server)\.ts/, () => cannotRun('strace', '-f', 'true')],
    [/^tcpdump -i lo /, () => noLoopback || cannotRun(...unshare('--net'), 'tcpdump', '-D')],
    [/^iptables -[AD] INPUT /, () => noLoopback || cannotRun(...unshare('--net'), 'iptables', '-L')],
    [/^(echo|printf|sleep) .* \| nc /, noNc],
    [/^bash -c /, () => cannotRun('bash', '-c', 'true')],
  ];
  const need = needs.find(([form]) => form.test(command));
  if (!need) throw new Error(`an example of README.md that the tests do not know how to run: ${command}`);
  return need[1]();
}

if (noLoopback) takeTurns(); // with the other file whose tests use the documented port

/** Makes a network namespace in which 54321 is free. Resolves to the command line that enters it, and to its end. */
async function ownNetwork(t: TestContext): Promise<{ enter: string[]; leave: () => Promise<unknown> }> {
  if (noLoopback) return { enter: [], leave: async () => {} };
  const holder = start(t, [...unshare('--net'), 'sh', '-c', 'ip link set lo up && echo $$ && exec sleep 300']);
  const [pid] = await holder.printed(/^\d+(?=\n)/);
  const user = process.getuid?.() === 0 ? [] : [`--user=/proc/${pid}/ns/user`, '--preserve-credentials'];
  const leave = () => {
    holder.process.kill();
    return holder.ended;
  };
  return { enter: ['nsenter', ...user, `--net=/proc/${pid}/ns/net`, '--'], leave };
}

/** A copy of the project in a folder of its own. */
function copyOfProject(t: TestContext): string {
  const folder = scratch(t);
  for (const file of [...SCRIPTS, 'package.json', 'tsconfig.json', '.npmrc']) copyFileSync(file, join(folder, file));
  symlinkSync(resolve('node_modules'), join(folder, 'node_modules'));
  return folder;
}

/** Applies a diff to the one script of the folder that has all of its lines; comments at their ends do not count. */
function apply(diff: string, folder: string): void {
  const code = (line: string) => line.replace(/ \/\/ .*/, '');
  const patched = [...sources(folder)].flatMap(([script, source]) => {
    const lines = source.split('\n');
    for (const hunk of diff.split(/^@@\n/m)) {
      const side = (sign: string) => hunk.trimEnd().split('\n').flatMap((line) =>
        (line.startsWith(sign) || line.startsWith(' ') ? [line.slice(1)] : []));
      const removed = side('-');
      const places = lines.flatMap((_, at) =>
        (removed.every((line, index) => code(lines[at + index] ?? '') === line) ? [at] : []));
      if (places.length !== 1 || places[0] === undefined) return [];
      lines.splice(places[0], removed.length, ...side('+'));
    }
    return [{ script, text: lines.join('\n') }];
  });
  assert.equal(patched.length, 1, `the diff fits ${patched.length} scripts:\n${diff}`);
  for (const { script, text } of patched) writeFileSync(join(folder, script), text);
}

/**
 * The command, with a script of the folder that is compiled already if npx would start it: transcripts.test.ts has the
 * start by npx. Where another program starts npx, such as strace, it remains.
 */
const compiled = (command: string, folder: string) =>
  command.replace(/(?<=^|ulimit -n \d+; )npx ts-node (\w+)\.ts/, (_, name: string) => {
    const script = `${name}.ts`;
    if (folder === '.') return node(script).map((word) => `'${word}'`).join(' ');
    compile(join(folder, script), join(folder, `${name}.js`));
    return `'${process.execPath}' ${name}.js`;
  });

/** Starts the commands of a terminal. It prints \0 after each, so that one can tell what each printed. */
function open(t: TestContext, terminal: Terminal, enter: string[], folder: string): Running {
  const typed = terminal.map(({ command }) =>
    `${compiled(command, folder)}\nstatus=$?; printf '\\0'; (exit $status)\n`).join('');
  const stderr = terminal.some(({ command }) => command.startsWith('tcpdump')) ? '' : 'exec 2>&1\n';
  // Our stdout is a socket, of which Node asks the type. strace would show it, but does not on a terminal.
  const shown = typed.startsWith('strace') ? `{ ${stderr}${typed}} | cat` : `${stderr}${typed}`;
  return start(t, [...enter, 'sh', '-c', `cd "$0"\n${shown}`, folder]);
}

/** Resolves when the next terminal may be used: a program that waits for others is ready, any other one has ended. */
async function ready(terminal: Terminal, running: Running, first: Running | undefined): Promise<void> {
  const command = terminal[0]?.command ?? '';
  const output = terminal[0]?.output ?? '';
  if (command.startsWith('tcpdump')) {
    await new Promise<void>((heard) => {
      running.process.stderr?.on('data', (text: string) => { if (text.includes('listening')) heard(); });
    });
  } else if (command.startsWith('sleep')) {
    await first?.printed(/Incoming/);
  } else if (/server\.ts/.test(command)) {
    await running.printed(/listening.*\n/);
  } else {
    await running.ended;
  }
  if (output.endsWith('^Z\n')) process.kill(-(running.process.pid ?? 0), 'SIGSTOP');
}

describe("the README's examples", { concurrency: noLoopback ? 1 : 3 }, () => {
  for (const { terminals, change } of EXAMPLES) {
    const commands = terminals.flat().map(({ command }) => command);
    const fillsBacklog = terminals.some(([typed]) => typed?.output.endsWith('^Z\n'));
    const skip = commands.map(cannotTry).find((reason) => reason) ?? (fillsBacklog && noSecondInBacklog());
    const title = `the README's example prints what it says: ${commands.join(' and ')}`;
    test(title, { ...EXAMPLE_LIMIT, skip }, async (t) => {
      const folder = change === undefined ? '.' : copyOfProject(t);
      if (change !== undefined) apply(change, folder);
      const { enter, leave } = await ownNetwork(t);
      const opened: Running[] = [];
      for (const terminal of terminals) {
        const running = open(t, terminal, enter, folder);
        opened.push(running);
        await ready(terminal, running, opened[0]);
      }
      for (const [index, terminal] of terminals.entries()) {
        const running = opened[index];
        assert.ok(running);
        const expected = terminal.map(({ output }) => output);
        if (expected[0]?.endsWith('^Z\n')) {
          await running.printed(pattern(expected[0].replace('^Z\n', '')));
          process.kill(-(running.process.pid ?? 0), 'SIGKILL');
          continue;
        }
        const interrupted = /^([^]*)\^C/.exec(expected[0] ?? '')?.[1];
        if (interrupted !== undefined) {
          await running.printed(pattern(interrupted));
          process.kill(-(running.process.pid ?? 0), 'SIGINT');
        }
        const printed = (await running.ended).stdout.replace(/\0$/, '').split('\0');
        assert.equal(printed.length, expected.length);
        for (const [at, output] of expected.entries()) {
          const lines = (printed[at] ?? '').replace(/\[pid +/g, '[pid '); // strace pads short numbers
          assert.match(lines.replace(/(?<=.)(?<!\n)$/, '\n'), pattern(output));
        }
      }
      await leave();
    });
  }
});

test('the README has examples of every script', () => {
  const commands = EXAMPLES.flatMap(({ terminals }) => terminals.flat().map(({ command }) => command));
  for (const script of SCRIPTS) assert.ok(commands.some((command) => command.includes(script)), script);
});

test('every block of code in the README is of a kind that is tested', () => {
  const languages = [...README.matchAll(/^```(.*)\n[^]*?\n```$/gm)].map(([, language]) => language);
  assert.deepEqual([...new Set(languages)].sort(), ['console', 'diff', 'mermaid', 'python', 'sh']);
  BLOCKS.forEach(({ language }, index) => {
    if (language === 'diff') assert.equal(BLOCKS[index + 1]?.language, 'console', 'an example shows what a diff does');
  });
});

test('the quick start is two commands: one runs an example, one runs the tests', () => {
  assert.deepEqual(blocks('sh'), [`npm ci && ${EXAMPLES[0]?.terminals[0]?.[0]?.command}`, 'npm ci && npm test']);
});

// The Python original: each half talks with ours, and both print what ours print.

/** What the README says that the command prints at its first place. */
const documented = (command: string) =>
  EXAMPLES.flatMap(({ terminals }) => terminals.flat()).find((typed) => typed.command === command)?.output ?? '';
const PYTHON = blocks('python');
const python = (script: 'server' | 'client') =>
  ['python3', '-u', '-c', PYTHON.find((text) => text.startsWith(`# ${script}.py\n`)) ?? ''];
const PAIRS: [server: string[], client: string[]][] = [
  [python('server'), node('client.ts')],
  [node('server.ts'), python('client')],
  [python('server'), python('client')],
];
for (const [server, client] of PAIRS) {
  const name = ([program = '', script = '']: string[]) =>
    (program === 'python3' ? 'the Python original' : basename(script).replace(/js$/, 'ts'));
  const skip = cannotRun('python3', '--version');
  test(`${name(server)} serves ${name(client)} as the README says`, { ...LIMIT, skip }, async (t) => {
    const { enter, leave } = await ownNetwork(t);
    const serving = start(t, [...enter, ...server]);
    await serving.printed(/\n/);
    assert.deepEqual(await run(t, [...enter, ...client]), {
      status: 0, stderr: '', stdout: documented('npx ts-node client.ts'),
    });
    const { status, stdout } = await serving.ended;
    assert.match(stdout, pattern(documented('npx ts-node server.ts')));
    assert.equal(status, 0);
    await leave();
  });
}

// The tables that compare Python and Node.

for (const script of SCRIPTS) {
  test(`the lines of ${script} that the README quotes are in it`, () => {
    const lines = tables('Python', 'system calls', script).flat().flatMap(([, , line]) => codes(line));
    assert.ok(lines.length > 3);
    for (const line of lines) assert.ok(readFileSync(script, 'utf8').includes(line), line);
  });
}

/** The calls of an strace log, one a line, that take or return an IPv4 socket, or report that it is ready. */
function socketCalls(log: string): string[] {
  const sockets = new Set<string>();
  return log.split('\n').flatMap((line) => {
    const [, call = '', args = '', result = ''] = /^(\w+)\((.*)\) += (.*)$/.exec(line) ?? [];
    const created = (call === 'socket' && args.startsWith('AF_INET,')) || call === 'accept4';
    if (created) sockets.add(result);
    const which = call === 'epoll_pwait' ? /EPOLLOUT[^{]*\{u32=\d+, u64=(\d+)/ : /^(\d+)/;
    const [, socket = ''] = which.exec(args) ?? [];
    return created || sockets.has(socket) ? [call] : [];
  });
}

const CALLS = 'socket,bind,listen,accept4,connect,getsockopt,read,write,shutdown,close,epoll_pwait';
const SCAN = node('portscanner.ts', '-H', 'localhost', '-p', '54321');
const TRACED: [script: string, commands: (traced: string[]) => [string[], string[]]][] = [
  ['server.ts', (traced) => [[...traced, ...node('server.ts')], node('client.ts')]],
  ['client.ts', (traced) => [node('server.ts'), [...traced, ...node('client.ts')]]],
  ['portscanner.ts', (traced) => [['echo'], [...traced, ...SCAN]]],
];
for (const [script, commands] of TRACED) {
  const skip = cannotRun('strace', '-f', 'true');
  test(`the system calls of ${script} are those of the README, in order`, { ...LIMIT, skip }, async (t) => {
    const log = join(scratch(t), 'log'); // one file for each thread
    const [first, second] = commands(['strace', '-ff', '-qq', '-e', 'signal=none', '-e', `trace=${CALLS}`, '-o', log]);
    const { enter, leave } = await ownNetwork(t);
    const waiting = start(t, [...enter, ...first]);
    await waiting.printed(/\n/);
    await run(t, [...enter, ...second]);
    await waiting.ended;
    await leave();
    const logs = readdirSync(join(log, '..')).map((file) => readFileSync(join(log, '..', file), 'utf8'));
    const made = logs.map(socketCalls).find((calls) => calls.length > 2);
    assert.deepEqual(made, tables('Python', 'system calls', script).flat().flatMap(([, calls]) => codes(calls)));
  });
}

// The picture.

test('the diagram is a sequence diagram of Mermaid', () => {
  const statement = /^ {4}(participant \w+ as .+|Note (left of|right of|over) \w+(,\w+)?: .+|\w+(->>|-x)\w+: .+)$/;
  const [diagram = '', ...more] = blocks('mermaid');
  assert.deepEqual(more, []);
  const [kind, ...statements] = diagram.split('\n');
  assert.equal(kind, 'sequenceDiagram');
  const participants = [...diagram.matchAll(/participant (\w+)/g)].map(([, name]) => name);
  for (const line of statements) {
    assert.match(line, statement);
    assert.doesNotMatch(line, /[;#]/); // they end a statement, or begin the code of a character
    const names = /^ {4}(?:Note [a-z ]+ )?(\w+)(?:(?:->>|-x|,)(\w+))?:/.exec(line)?.slice(1) ?? [];
    for (const name of names) assert.ok(name === undefined || participants.includes(name), line);
  }
});

/** The arrows of the diagram, in order: from, to, and what stands at them. */
const ARROWS = [...(blocks('mermaid')[0] ?? '').matchAll(/(\w)->>(\w): (.*)/g)]
  .map(([, from = '', to = '', text = '']) => ({ from, to, text }));

test("the diagram's packets are those that tcpdump shows of the conversation", () => {
  const flags: Record<string, string> = { SYN: 'S', 'SYN-ACK': 'S.', data: 'P.', FIN: 'F.' };
  const drawn = ARROWS.filter(({ from, to, text }) => from !== to && text !== 'ACK')
    .map(({ from, text }) => `${from} ${flags[text.split(',')[0] ?? '']}`);
  const output = EXAMPLES.flatMap(({ terminals }) => terminals.flat())
    .find(({ command }) => command.startsWith('tcpdump') && command.includes('-c 6'))?.output ?? '';
  const shown = [...output.matchAll(/IP 127\.0\.0\.1\.(\d+) .*\[(.*)\]/g)]
    .map(([, port, shownFlags]) => `${port === '54321' ? 'S' : 'C'} ${shownFlags}`);
  assert.deepEqual(drawn, shown);
});

test("the diagram's calls are those of the tables, in the same order", () => {
  const drawn = (script: string) => [...(blocks('mermaid')[0] ?? '').matchAll(/(?:(\w)->>\1|Note \w+ of (\w)): (.*)/g)]
    .flatMap(([, self, noted, text = '']) => ((self ?? noted) === script ? [...text.matchAll(/(\w+)\(\)/g)] : []))
    .map(([, call = '']) => (call === 'accept' ? 'accept4' : call));
  const listed = (script: string) =>
    tables('Python', 'system calls', script).flat().flatMap(([, calls]) => codes(calls));
  assert.deepEqual(drawn('C'), listed('client.ts'));
  // The server's first epoll_pwait is drawn to show that it is the kernel that connects; its listening socket closes.
  assert.deepEqual(drawn('S').filter((call) => call !== 'epoll_pwait'), listed('server.ts'));
});

// The reference.

/** Comes from a server that runs the code at each connection, once it listens on port 54321. */
const peer = (code: string) => `
  mkfifo /run/listening
  "${process.execPath}" -e '
    const talk = (connection) => { ${code} };
    net.createServer({ allowHalfOpen: true }, (connection) => talk(connection.on("error", () => {})))
      .listen(54321, "127.0.0.1", () => fs.writeFileSync("/run/listening", ""));' &
  cat /run/listening`;
const LONG = 'x'.repeat(300); // not a name
const WRONG = `${'x'.repeat(64)}.test`; // a label of 64 characters is refused before any name server is asked
const ONE_PORT = 'echo 54321 54321 > /proc/sys/net/ipv4/ip_local_port_range';
const FULL = ['sh', '-c', 'exec "$@" > /dev/full', 'sh'];
const scan = (host: string) => node('portscanner.ts', '-H', host, '-p', '80');
const failing = (fault: string) =>
  ['strace', '-f', '-qq', '-o', '/dev/null', '-e', 'signal=none', '-e', `inject=${fault}`];

/**
 * How each error of the table comes about: the setup of a network of two machines, and a command line. The key is the
 * error as printed there, with its code. Without a name server in that network, each look-up ends with EAI_AGAIN.
 */
const PROVOKED: Record<string, [setup: string, commandLine: string[]]> = {
  'portscanner.ts: cannot find an IPv4 address of HOST (ENOTFOUND)': ['', scan(WRONG)],
  'portscanner.ts: cannot find an IPv4 address of HOST (EAI_AGAIN)': ['', scan('example.test')],
  'portscanner.ts: cannot find an IPv4 address of HOST (EINVAL)': ['', scan(LONG)],
  'portscanner.ts: cannot scan port N of ADDRESS (ENETUNREACH)': ['', scan('198.51.100.1')],
  'portscanner.ts: cannot scan port N of ADDRESS (EADDRNOTAVAIL)':
    [`${ONE_PORT}; echo 54321 > /proc/sys/net/ipv4/ip_local_reserved_ports`, scan(TARGET)],
  'portscanner.ts: cannot scan port N of ADDRESS (EMFILE)':
    ['', [...failing('socket:error=EMFILE'), ...scan(TARGET)]],
  'portscanner.ts: cannot scan port N of ADDRESS (EACCES)':
    ['ip route add prohibit 198.51.100.0/24', scan('198.51.100.1')],
  'portscanner.ts: cannot scan port N of ADDRESS (EPERM)': ['', [...failing('connect:error=EPERM'), ...scan(TARGET)]],
  'portscanner.ts: cannot print the answers (ENOSPC)': ['', [...FULL, ...scan(TARGET)]],
  'server.ts: cannot listen on HOST port N (EADDRINUSE)': [listenAt([54321], 'here'), node('server.ts')],
  'server.ts: cannot listen on HOST port N (EACCES)':
    ['', ['setpriv', '--bounding-set', '-net_bind_service', '--', ...node('server.ts', 'localhost', '80')]],
  'server.ts: cannot listen on HOST port N (EADDRNOTAVAIL)': ['', node('server.ts', TARGET)],
  'server.ts: cannot listen on HOST port N (ENOTFOUND)': ['', node('server.ts', WRONG)],
  'server.ts: cannot listen on HOST port N (EAI_AGAIN)': ['', node('server.ts', 'example.test')],
  'server.ts: cannot listen on HOST port N (EINVAL)': ['', node('server.ts', LONG)],
  'client.ts: connection to HOST port N failed (ECONNREFUSED)': ['', node('client.ts')],
  'client.ts: connection to HOST port N failed (ECONNRESET)':
    [peer('connection.once("data", () => connection.resetAndDestroy());'), node('client.ts')],
  'client.ts: connection to HOST port N failed (EHOSTUNREACH)':
    ['echo 50 > /proc/sys/net/ipv4/neigh/scanner/retrans_time_ms', node('client.ts', NOBODY)],
  'client.ts: connection to HOST port N failed (ENETUNREACH)': ['', node('client.ts', '198.51.100.1')],
  'client.ts: connection to HOST port N failed (EADDRNOTAVAIL)':
    [`${ONE_PORT}; echo 54321 > /proc/sys/net/ipv4/ip_local_reserved_ports`, node('client.ts', TARGET)],
  'client.ts: connection to HOST port N failed (EACCES)':
    ['ip route add prohibit 198.51.100.0/24', node('client.ts', '198.51.100.1')],
  'client.ts: connection to HOST port N failed (ENOTFOUND)': ['', node('client.ts', WRONG)],
  'client.ts: connection to HOST port N failed (EAI_AGAIN)': ['', node('client.ts', 'example.test')],
  'client.ts: connection to HOST port N failed (EINVAL)': ['', node('client.ts', LONG)],
  'client.ts: connection to HOST port N failed (ECONNREFUSED): nobody listens, TCP connected it to itself':
    [ONE_PORT, node('client.ts')],
  'client.ts: nothing came from HOST port N for 10 s': [rule('80', 'DROP'), node('client.ts', TARGET, '80')],
  'client.ts: server closed after N of M bytes':
    [peer('connection.once("data", () => connection.end("Hello"));'), node('client.ts')],
  'client.ts: the reply differs from the message':
    [peer('connection.once("data", () => connection.end("Hello world!"));'), node('client.ts')],
  'client.ts: server sent more than the N bytes of the message':
    [peer('connection.once("data", () => connection.end("Hello World! Hello!"));'), node('client.ts')],
  'client.ts: cannot print (ENOSPC)':
    [peer('connection.once("data", (data) => connection.end(data));'), [...FULL, ...node('client.ts')]],
};
/** The errors that take a peer which breaks off at the right moment: see the exercises, and test/server.test.ts. */
const NOT_PROVOKED = [
  'server.ts: connection lost (ECONNRESET)', 'server.ts: connection lost (EPIPE)',
  'server.ts: connection lost (ETIMEDOUT)', 'client.ts: connection to HOST port N failed (EPIPE)',
  'server.ts: cannot print (ENOSPC)',
];

/** The errors of the table, each with its script and code. The codes of a message are listed in its meaning. */
const ERRORS = tables('script', 'error', 'meaning').flat().flatMap(([scripts = '', error = '', meaning = '']) => {
  const [message = ''] = codes(error);
  const listed = message.includes('(CODE)')
    ? meaning.split('<br>').flatMap((line) => codes(line.split(': ')[0])) : ['CODE'];
  return scripts.split(', ').flatMap((script) => listed.map((code) => `${script}: ${message.replace('CODE', code)}`));
});

test('the errors that the README explains are those that the tests know to provoke', () => {
  assert.deepEqual([...ERRORS].sort(), [...Object.keys(PROVOKED), ...NOT_PROVOKED].sort());
});

describe("the README's errors", { concurrency: 4 }, () => {
  for (const [error, [setup, commandLine]] of Object.entries(PROVOKED)) {
    const skip = noNetwork() || (error.includes('ENOSPC') && noFullDisk())
      || (commandLine[0] === 'strace' && cannotRun('strace', '-f', 'true')) || false;
    test(`the README's error is printed: ${error}`, { ...LIMIT, skip }, async (t) => {
      const { stderr } = await run(t, inNetwork(setup, commandLine));
      const escaped = error.replace(/[.()]/g, '\\$&');
      const printed = escaped.replace(/HOST|ADDRESS/g, '\\S+').replace(/\b[NM]\b/g, '\\d+');
      assert.match(stderr, new RegExp(`^${printed}\n$`));
    });
  }
});

test('the other errors that the README explains are in the scripts, and have codes that Node knows', () => {
  for (const error of NOT_PROVOKED) {
    const [, script = '', message = '', code = ''] = /^(\S+): (.*) \((\w+)\)$/.exec(error) ?? [];
    for (const words of message.split(/HOST|port N/)) assert.ok(sources().get(script)?.includes(words.trim()), error);
    assert.ok(code in constants.errno, error);
  }
});

test('the links of the README lead somewhere', () => {
  const anchors = [...README.matchAll(/^#+ (.*)$/gm)]
    .map(([, title = '']) => `#${title.toLowerCase().replace(/[^\w -]/g, '').replaceAll(' ', '-')}`);
  const links = [...README.matchAll(/\]\(([^)]*)\)/g)].map(([, link = '']) => link);
  assert.ok(links.length > 0);
  for (const link of links) assert.ok(anchors.includes(link) || existsSync(link), link);
});

test('the functions that the README names are in the scripts', () => {
  const source = [...sources().values()].join('\n');
  const named = [...README.matchAll(/\(`(\w+)`\)/g)].map(([, name]) => name);
  assert.ok(named.length > 0);
  for (const name of named) assert.match(source, new RegExp(`(function\\*?|const) ${name}\\b`));
});

test('the npm scripts that the README names are there', () => {
  const named = [...README.matchAll(/`npm (?:run (\w+)|(test))/g)].map(([, name, test]) => name ?? test ?? '');
  assert.ok(named.length > 0);
  for (const name of named) assert.ok(name in scripts, name);
});

test("the benchmark's rows have the names that npm run bench prints", () => {
  const source = readFileSync('test/bench.ts', 'utf8');
  const rows = tables('benchmark', 'ours', 'the other').flat();
  assert.ok(rows.length > 0);
  for (const [name = ''] of rows) assert.ok(source.includes(name.replace(/^.*: /, '')), name);
});
