/** What the tests share: it starts the real scripts, reads what they print, and stops what is left of them. */
import { type ChildProcess, spawn, spawnSync, type StdioOptions } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { networkInterfaces, tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { before, type TestContext } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import { ModuleKind, ScriptTarget, transpileModule } from 'typescript';

// npm test runs this file by itself first, for this check alone.
if (process.platform === 'win32') {
  console.error('The tests need Linux or macOS: they signal process groups and suspend processes. On Windows use WSL.');
  process.exit(1); // nothing was tested
}

/** Given to each test: one that hangs fails after this many milliseconds, and what it started is stopped. */
export const LIMIT = { timeout: 180_000 };

/** Held by the file whose turn it is. The system frees it even if the tests are killed. */
const TURN = 14321;

/** For a file whose tests use the documented port: they wait until no other such file runs, in whatever project. */
export function takeTurns(): void {
  before(async () => {
    while (!await holds(TURN)) await setTimeout(100);
  }, { timeout: 600_000 });
}

/** Whether this process could take the port, which it then holds until it ends. */
function holds(port: number): Promise<boolean> {
  return new Promise((resolve, reject) => {
    const server = createServer().listen(port, '127.0.0.1', () => resolve(true)).unref();
    server.on('error', ({ code, message }: NodeJS.ErrnoException) => {
      if (code === 'EADDRINUSE') resolve(false);
      else reject(new Error(message));
    });
  });
}

/** What a program left behind when it ended. The status is null if a signal ended it. */
export interface Ended {
  status: number | null;
  stdout: string;
  stderr: string;
}

/** A program that runs. */
export interface Running {
  /** Resolves when stdout matches the pattern; rejects when the program ends without that. */
  printed(pattern: RegExp): Promise<RegExpExecArray>;
  /** Resolves when the program has ended and all that it printed is here. */
  ended: Promise<Ended>;
  process: ChildProcess;
}

/** The command line that runs a script as documented. */
export const npx = (script: string, ...args: string[]) => ['npx', 'ts-node', script, ...args];

/** The same without npx, which takes half the time. */
export const tsNode = (script: string, ...args: string[]) =>
  [process.execPath, 'node_modules/ts-node/dist/bin.js', script, ...args];

/** The same for a script that is compiled already, which takes a quarter of that: for all but the start itself. */
export const node = (script: string, ...args: string[]) => [process.execPath, compiled(script), ...args];

/** Where the compiled scripts are, once there is one. */
let compiledScripts: string | undefined;

/** The file with the JavaScript of a script. Each test file compiles a script once, when it first needs it. */
function compiled(script: string): string {
  compiledScripts ??= makeFolder();
  const file = join(compiledScripts, script.replace(/ts$/, 'js'));
  if (!existsSync(file)) compile(script, file);
  return file;
}

/** Compiles a script to a file. */
export function compile(script: string, file: string): void {
  const compilerOptions = { module: ModuleKind.CommonJS, target: ScriptTarget.ES2023 };
  writeFileSync(file, transpileModule(readFileSync(script, 'utf8'), { compilerOptions }).outputText);
}

/** A folder in which the project's packages are found. It is removed when the tests end. */
function makeFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'scripts-'));
  symlinkSync(resolve('node_modules'), join(folder, 'node_modules'));
  process.on('exit', () => rmSync(folder, { recursive: true }));
  return folder;
}

/** What runs now, each program the leader of its process group. If the tests are broken off, it ends with them. */
const running = new Set<ChildProcess>();
process.on('exit', () => running.forEach(stop));
for (const signal of ['SIGHUP', 'SIGINT', 'SIGTERM']) process.on(signal, () => process.exit(1));

/** Ends a running program with all that it has started. */
function stop({ pid }: ChildProcess): void {
  if (pid !== undefined) process.kill(-pid, 'SIGKILL');
}

/** Starts a command line in the project's folder, in a process group of its own. The end of the tests stops it. */
export function launch(commandLine: string[], stdio: StdioOptions, env: NodeJS.ProcessEnv = {}): ChildProcess {
  const [command = '', ...args] = commandLine;
  const child = spawn(command, args, { stdio, env: { ...process.env, ...env }, detached: true });
  child.on('spawn', () => running.add(child));
  child.on('exit', () => running.delete(child));
  return child;
}

// All ts-node processes of a folder share a file of compiled code. V8 crashes if one reads it while another writes it.
const NO_CACHE = { DISABLE_V8_COMPILE_CACHE: '1' };

/** Starts a command line, and keeps what it prints. The test's end stops it. */
export function start(t: TestContext, commandLine: string[], env: NodeJS.ProcessEnv = {}): Running {
  const child = launch(commandLine, ['ignore', 'pipe', 'pipe'], { ...NO_CACHE, ...env });
  let stdout = '';
  let stderr = '';
  child.stdout?.setEncoding('utf8').on('data', (text) => { stdout += text; });
  child.stderr?.setEncoding('utf8').on('data', (text) => { stderr += text; });

  const ended = new Promise<Ended>((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (status) => resolve({ status, stdout, stderr }));
  });
  ended.catch(() => {}); // whoever awaits it is told; a test that has failed before need not be

  t.after(async () => {
    if (!running.has(child)) return;
    const printed = JSON.stringify({ stdout: stdout.slice(-2000), stderr: stderr.slice(-2000) });
    t.diagnostic(`${commandLine.join(' ')} still ran, and had printed ${printed}`);
    stop(child);
    await ended;
  });

  const printed = (pattern: RegExp) => new Promise<RegExpExecArray>((resolve, reject) => {
    const look = () => {
      const match = pattern.exec(stdout);
      if (match) resolve(match);
    };
    child.stdout?.on('data', look);
    ended.then((end) => reject(new Error(`no ${pattern} in ${JSON.stringify(end)}`)), reject);
    look();
  });

  return { printed, ended, process: child };
}

/** Runs a command line to its end. */
export const run = (t: TestContext, commandLine: string[], env?: NodeJS.ProcessEnv) => start(t, commandLine, env).ended;

/** Starts server.ts and waits until it listens. Resolves to the running server and its port, which the system chooses. */
export async function startServer(
  t: TestContext, host = '127.0.0.1', env: NodeJS.ProcessEnv = {},
): Promise<{ server: Running; port: number }> {
  const server = start(t, node('server.ts', host, '0'), env);
  const [, port] = await server.printed(/^Server started on .*, listening on TCP port (\d+)\n/);
  return { server, port: Number(port) };
}

/** A folder of the test's own, removed when it ends. */
export function scratch(t: TestContext): string {
  const folder = mkdtempSync(join(tmpdir(), 'test-'));
  t.after(() => rmSync(folder, { recursive: true }));
  return folder;
}

/** unshare(1) with the namespaces asked for; whoever is not root gets a user namespace too. */
export const unshare = (...namespaces: string[]) =>
  ['unshare', ...(process.getuid?.() === 0 ? [] : ['--map-root-user']), ...namespaces];

/** What cannotRun() has found, by the command line. */
const tried = new Map<string, string | false>();

/** Why the command line can't be run here, in words; false if it can. It is tried once. For the `skip` of a test. */
export function cannotRun(...commandLine: string[]): string | false {
  const key = JSON.stringify(commandLine);
  const reason = tried.get(key) ?? tryToRun(commandLine);
  tried.set(key, reason);
  return reason;
}

/** Runs the command line. Returns why it failed, in words, or false. */
function tryToRun([command = '', ...args]: string[]): string | false {
  const { error, status, stderr } = spawnSync(command, args, { encoding: 'utf8' });
  if (error) return `${command} is not installed`;
  const [complaint] = stderr.split('\n'); // BusyBox goes on with its usage
  return status === 0 ? false : complaint || `${command} ended with status ${status}`;
}

/** A command line under strace, which says nothing itself and does to a system call what is injected. */
export const strace = (call: string, injected: string, commandLine: string[]) => [
  'strace', '-f', '--seccomp-bpf', '-qq', '-o', '/dev/null', '-e', `trace=${call}`, '-e', `inject=${call}:${injected}`,
  ...commandLine,
];

/** Why strace can't be run here, in words; false if it can. For the `skip` of a test. */
export const noStrace = () => cannotRun('strace', '-f', '--seccomp-bpf', 'true');

/** Why the BSD netcat can't be run here, in words; false if it can: there are others by the name of nc. */
export const noNc = () =>
  cannotRun('sh', '-c', 'nc -h 2>&1 | grep -q OpenBSD') && 'nc is not installed, or not that of OpenBSD';

/** Resolves to the next text that a program prints on stderr. */
export const reported = ({ process }: Running) =>
  new Promise<string>((resolve) => process.stderr?.once('data', resolve));

/** The command line, with a full disk for its stdout. */
export const onFullDisk = (commandLine: string[]) => ['sh', '-c', 'exec "$@" > /dev/full', 'sh', ...commandLine];

/** Why a full disk can't be had here, in words; false if it can. For the `skip` of a test. */
export const noFullDisk = () => (existsSync('/dev/full') ? false : 'there is no /dev/full');

/** Whether Node runs the source to its end with status 0. */
const succeeds = (source: string) => spawnSync(process.execPath, ['-e', source]).status === 0;

/** Why nothing can listen on 127.0.0.2 here, in words; false if it can. For the `skip` of a test. */
export const noSecondLoopback = () =>
  !succeeds("net.createServer().listen(0, '127.0.0.2', () => process.exit())") && '127.0.0.2 is not a local address';

/** Source of a listener with a backlog of 1. It accepts nothing until the dialling source, given the port, ends. */
const beforeAccept = (dial: string, then: string) => `
  const server = net.createServer().listen({ port: 0, host: '127.0.0.1', backlog: 1 }, () => {
    const args = ['-e', ${JSON.stringify(dial)}, server.address().port];
    const { status } = child_process.spawnSync(process.execPath, args, { timeout: 10_000 });
    setTimeout(process.exit, 3000, 1); // if nothing comes
    ${then}
  });`;

/** Why two connections can't wait for accept() here if the backlog is 1, in words; false if they can. For `skip`. */
export const noSecondInBacklog = () =>
  !succeeds(beforeAccept(`
    let waiting = 0;
    const count = () => { if (++waiting === 2) process.exit(); };
    for (const attempt of [1, 2]) net.connect(process.argv[1], '127.0.0.1', count);
    setTimeout(process.exit, 3000, 1);`, 'process.exit(status);'))
  && 'on this system, a backlog of 1 admits one connection';

/** Why accept() does not return a connection that was reset earlier, in words; false if it does. For `skip`. */
export const noResetBeforeAccept = () =>
  !succeeds(beforeAccept(
    "const client = net.connect(process.argv[1], '127.0.0.1', () => client.resetAndDestroy());",
    "server.on('connection', ({ remoteAddress }) => process.exit(remoteAddress === undefined ? 0 : 1));",
  )) && 'on this system, accept() does not return a connection that was reset earlier';

/** Resolves when the system says that the program is in the state: S, asleep until something comes; T, stopped. */
export async function inState(program: ChildProcess, state: 'S' | 'T'): Promise<void> {
  while (!stateOf(program).startsWith(state)) await setTimeout(10);
}

/** The state of a program, as ps(1) shows it. Throws if it has ended. */
function stateOf({ pid, exitCode, signalCode }: ChildProcess): string {
  if (exitCode !== null || signalCode !== null) throw new Error('the program has ended');
  if (existsSync('/proc/self/stat')) return readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ').at(-1) ?? '';
  return spawnSync('ps', ['-o', 'state=', '-p', `${pid}`], { encoding: 'utf8' }).stdout;
}

/** The most memory that a program has held so far, in bytes; 0 when it has ended, or without /proc. */
export function peakMemory({ pid }: { pid?: number | undefined }): number {
  const file = `/proc/${pid}/status`;
  const [, kilobytes = 0] = /^VmHWM:\s+(\d+) kB$/m.exec(existsSync(file) ? readFileSync(file, 'utf8') : '') ?? [];
  return Number(kilobytes) * 1024;
}

/** Why a program's memory can't be told here, in words; false if it can. For the `skip` of a test. */
export const noPeakMemory = () => (peakMemory(process) === 0 ? 'there is no /proc that tells the peak memory' : false);

/** Why there is no ::1 here, in words; false if there is. For the `skip` of a test. */
export function noIPv6(): string | false {
  const addresses = Object.values(networkInterfaces()).flat().map((network) => network?.address);
  return addresses.includes('::1') ? false : 'the loopback interface has no IPv6 address';
}
