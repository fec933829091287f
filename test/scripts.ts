/** Shared by the tests: starts the real scripts, reads what they print, and stops whatever is still running. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn, spawnSync, type StdioOptions } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { networkInterfaces, tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import type { Readable } from 'node:stream';
import type { TestContext } from 'node:test';
import { ModuleKind, ScriptTarget, transpileModule } from 'typescript';

/** A test that hangs fails after this many milliseconds, and what it started is stopped. */
export const LIMIT = { timeout: 120_000 };

/** The same limit for a test that is skipped for a reason, in words, or not if that is false. */
export const unless = (skip: string | false) => ({ ...LIMIT, skip });

/** What a program left behind when it ended. The status is null if a signal ended it. */
export type Ended = { status: number | null; stdout: string; stderr: string };

/** A running program. */
export type Running = ReturnType<typeof start>;

/** The command line that runs a script as documented. */
export const npx = (script: string, ...args: string[]) => ['npx', 'ts-node', script, ...args];

/** The same for a compiled script, in an eighth of the time. */
export const node = (script: string, ...args: string[]) => [process.execPath, compiled(script), ...args];

/** The same for a script in which one piece of source is replaced by another, as a learner would edit it. */
export const edited = (script: string, before: string, after: string, ...args: string[]) =>
  [process.execPath, compiled(script, { [before]: after }), ...args];

/** The folder of the compiled scripts, in which the project's packages are found. It is removed when the tests end. */
const folder = mkdtempSync(join(tmpdir(), 'scripts-'));
symlinkSync(resolve('node_modules'), join(folder, 'node_modules'));
process.on('exit', () => rmSync(folder, { recursive: true }));
const files = new Map<string, string>();

/** The file with the JavaScript of a script, in which pieces of the source may be replaced. Each is compiled once. */
export function compiled(script: string, edits: Record<string, string> = {}): string {
  const key = JSON.stringify([script, edits]);
  const known = files.get(key);
  if (known !== undefined) return known;

  let source = readFileSync(script, 'utf8');
  for (const [before, after] of Object.entries(edits)) {
    assert.equal(source.split(before).length, 2, `the source must contain this once: ${before}`);
    source = source.replace(before, () => after);
  }
  const compilerOptions = { module: ModuleKind.CommonJS, target: ScriptTarget.ES2023 };
  const file = join(folder, `${files.size}-${script.replace(/ts$/, 'js')}`);
  writeFileSync(file, transpileModule(source, { compilerOptions }).outputText);
  files.set(key, file);
  return file;
}

/** The running programs, each the leader of its process group. If the tests are interrupted, they end too. */
const running = new Set<ChildProcess>();
process.on('exit', () => running.forEach((child) => signal(child, 'SIGKILL')));
for (const name of ['SIGHUP', 'SIGINT', 'SIGTERM']) process.on(name, () => process.exit(1));

/** Sends a signal to a program and to all that it has started. */
export function signal({ pid }: ChildProcess, name: NodeJS.Signals): void {
  try {
    if (pid !== undefined) process.kill(-pid, name);
  } catch {} // it has just ended
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

/**
 * Starts a command line, and keeps what it prints. It is stopped when the test ends. `ended` resolves when it ends, and
 * printed() when its stdout matches, or rejects if it ends first.
 */
export function start(
  t: TestContext, commandLine: string[], env: NodeJS.ProcessEnv = {}, stdin: 'ignore' | 'pipe' = 'ignore',
) {
  const child = launch(commandLine, [stdin, 'pipe', 'pipe'], { ...NO_CACHE, ...env });
  let stdout = '';
  let stderr = '';
  child.stdout?.setEncoding('utf8').on('data', (text) => { stdout += text; });
  child.stderr?.setEncoding('utf8').on('data', (text) => { stderr += text; });

  const ended = new Promise<Ended>((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (status) => resolve({ status, stdout, stderr }));
  });
  ended.catch(() => {}); // ignored if the test has already failed

  t.after(async () => {
    if (!running.has(child)) return;
    signal(child, 'SIGKILL');
    t.diagnostic(`${commandLine.join(' ')} was still running, after ${JSON.stringify(await ended).slice(0, 1000)}`);
  });

  const printed = async (pattern: RegExp) => {
    const never = ended.then((end) => assert.match(end.stdout, pattern, `not printed: ${JSON.stringify(end)}`));
    never.catch(() => {}); // ignored if it was printed
    while (!pattern.test(stdout)) await Promise.race([once(child.stdout as Readable, 'data'), never]);
    return pattern.exec(stdout) ?? [];
  };

  return { printed, ended, process: child };
}

/** Runs a command line to its end. */
export const run = (t: TestContext, commandLine: string[], env?: NodeJS.ProcessEnv) => start(t, commandLine, env).ended;

/** Starts server.ts, and waits until it listens. Resolves to it and to its port, which the system chooses. */
export async function startServer(t: TestContext, host = '127.0.0.1') {
  const server = start(t, node('server.ts', host, '0'));
  const [, port] = await server.printed(/^Server started on .*, listening on TCP port (\d+)\n/);
  return { server, port: Number(port) };
}

/** A folder for one test, removed when it ends. */
export function scratch(t: TestContext): string {
  const folder = mkdtempSync(join(tmpdir(), 'test-'));
  t.after(() => rmSync(folder, { recursive: true }));
  return folder;
}

/** unshare(1) with the namespaces asked for. Without root's rights, it needs a user namespace too. */
export const unshare = (...namespaces: string[]) =>
  ['unshare', ...(process.getuid?.() === 0 ? [] : ['--map-root-user']), ...namespaces];

/** For the `skip` of a test: why the command line can't be run here, in words, or false if it can. */
export function cannotRun(...[command = '', ...args]: string[]): string | false {
  const { error, status, stderr } = spawnSync(command, args, { encoding: 'utf8' });
  if (error) return `${command} is not installed`;
  const [complaint] = stderr.split('\n'); // BusyBox goes on with its usage
  return status === 0 ? false : complaint || `${command} ended with status ${status}`;
}

// For the `skip` of a test: each is what is missing here, or false.
export const noStrace = () => cannotRun('strace', '-f', '--seccomp-bpf', 'true');
export const notLinux = (what: string) => process.platform !== 'linux' && `only Linux ${what}`;
export const noIPv6 = () =>
  !Object.values(networkInterfaces()).flat().some((network) => network?.address === '::1') && 'there is no ::1';

/** The most memory that a program has held so far, in bytes; 0 when it has ended, and without /proc. */
export function peakMemory({ pid }: { pid?: number | undefined }): number {
  const file = `/proc/${pid}/status`;
  const [, kilobytes = 0] = /^VmHWM:\s+(\d+) kB$/m.exec(existsSync(file) ? readFileSync(file, 'utf8') : '') ?? [];
  return Number(kilobytes) * 1024;
}
