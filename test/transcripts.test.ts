// The documented text, to the byte, from the documented commands on the documented port. Only these tests use the port
// in this machine's own network, one after the other.
import assert from 'node:assert/strict';
import { accessSync, constants, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { listen } from './peers';
import { cannotRun, LIMIT, node, noIPv6, npx, run, scratch, start, unless, unshare } from './scripts';

const SCAN = ['portscanner.ts', '-H', 'localhost', '-p', '54321'] as const;

/** The documented transcripts of scanner, server and client; wrap() makes the command line of a script. */
async function asDocumented(t: TestContext, wrap: typeof npx, env: NodeJS.ProcessEnv = {}): Promise<void> {
  assert.deepEqual(await run(t, wrap(...SCAN), env), {
    status: 1, stderr: '', stdout: 'Connecting to 127.0.0.1...\n[FAILED] TCP port 54321 is closed\n',
  });

  const server = start(t, wrap('server.ts'), env);
  await server.printed(/\n/);
  assert.deepEqual(await run(t, wrap('client.ts'), env), {
    status: 0, stderr: '', stdout: 'Connected to server: localhost on port 54321\n'
      + 'Sending some data...\n'
      + 'Response from server: Hello World!\n'
      + 'Connection closed.\n',
  });
  const { status, stdout, stderr } = await server.ended;
  assert.deepEqual({ status, stderr, stdout: stdout.replace(/(?<=127\.0\.0\.1:)\d+/, '58666') }, {
    status: 0, stderr: '', stdout: 'Server started on localhost, listening on TCP port 54321\n'
      + 'Incoming connection from 127.0.0.1:58666...\n'
      + 'Received following data: Hello World!\n'
      + 'Server is shutting down. Bye!\n',
  });
}

test('the documented commands print the documented lines', LIMIT, (t) => asDocumented(t, npx));

test('the documented scan of an open port reports it open', LIMIT, async (t) => {
  await listen(t, (connection) => connection.end(), '127.0.0.1', 54321);
  assert.deepEqual(await run(t, node(...SCAN)), {
    status: 0, stderr: '', stdout: 'Connecting to 127.0.0.1...\n[OK] TCP port 54321 is open\n',
  });
});

const noScript = cannotRun('script', '--version');
test('on a terminal, npx adds nothing to what a script prints', unless(noScript), async (t) => {
  const usage = (await run(t, node('client.ts', '--help'))).stdout;
  const onTerminal = ['script', '-qec', npx('client.ts', '--help').join(' '), '/dev/null'];
  const { stdout } = await run(t, onTerminal, { CI: 'false', TERM: 'xterm' }); // npx shows no spinner in CI
  assert.equal(stdout.replaceAll('\r', ''), usage);
});

const noEnvS = cannotRun('/usr/bin/env', '-S', 'true') && 'env has no -S, which the first line of the scripts needs';
test('the scripts can be executed directly', unless(noEnvS), async (t) => {
  const [script, ...args] = SCAN;
  assert.match((await run(t, [`./${script}`, ...args])).stdout, /TCP port 54321 is closed/);
  for (const other of ['server.ts', 'client.ts']) {
    assert.equal(readFileSync(other, 'utf8').split('\n')[0], readFileSync(script, 'utf8').split('\n')[0]);
    accessSync(other, constants.X_OK); // it throws without the execute bit
  }
});

// Node strips types by itself from 22.18 and 23.6 on. It may warn that this is experimental.
if ('typescript' in process.features && process.features.typescript) {
  test('the scripts run on Node without ts-node', LIMIT, (t) =>
    asDocumented(t, (script, ...args) => [process.execPath, script, ...args], { NODE_NO_WARNINGS: '1' }));
}

const noHosts = noIPv6() || cannotRun(...unshare('--mount'), 'mount', '--bind', '/etc/hosts', '/etc/hosts');
test('the lines are the same if ::1 is the first address of localhost', unless(noHosts), async (t) => {
  await listen(t, (connection) => connection.end(), '::1', 54321); // a script that used ::1 would find this server
  const hosts = join(scratch(t), 'hosts');
  writeFileSync(hosts, '::1 localhost\n127.0.0.1 localhost\n');
  const mount = 'mount --bind "$0" /etc/hosts && mount -t tmpfs tmpfs /run'; // in /run, a resolver may have a socket
  const wrap: typeof npx = (script, ...args) =>
    [...unshare('--mount'), 'sh', '-c', `${mount} && exec "$@"`, hosts, ...node(script, ...args)];
  await asDocumented(t, wrap);
});
