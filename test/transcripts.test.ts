/**
 * The documented text, to the byte, from the documented commands on the documented port. Only these tests use the port
 * in this machine's own network, one after the other.
 */
import assert from 'node:assert/strict';
import { accessSync, constants, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { listen } from './peers';
import { cannotRun, LIMIT, node, noIPv6, noMountedHosts, npx, PATIENCE, run, scratch, start, unshare } from './scripts';

const PORT = 54321;
const SCAN = ['portscanner.ts', '-H', 'localhost', '-p', '54321'] as const;

/** The documented transcripts of scanner, server and client; wrap() makes the command line of a script. */
async function asDocumented(t: TestContext, wrap: typeof npx, env: NodeJS.ProcessEnv = {}): Promise<void> {
  assert.deepEqual(await run(t, wrap(...SCAN), env), {
    status: 1, stderr: '', stdout: 'Connecting to 127.0.0.1...\n[FAILED] TCP port 54321 is closed\n',
  });

  const server = start(t, wrap('server.ts'), env);
  await server.printed(/\n/);
  assert.deepEqual(await run(t, wrap('client.ts'), env), {
    status: 0,
    stderr: '',
    stdout: 'Connected to server: localhost on port 54321\n'
      + 'Sending some data...\n'
      + 'Response from server: Hello World!\n'
      + 'Connection closed.\n',
  });
  const { status, stdout, stderr } = await server.ended;
  assert.deepEqual({ status, stderr, stdout: stdout.replace(/(127\.0\.0\.1:)\d+/, '$158666') }, {
    status: 0,
    stderr: '',
    stdout: 'Server started on localhost, listening on TCP port 54321\n'
      + 'Incoming connection from 127.0.0.1:58666...\n'
      + 'Received following data: Hello World!\n'
      + 'Server is shutting down. Bye!\n',
  });
}

test('the documented commands print the documented lines', PATIENCE, (t) => asDocumented(t, npx));

test('the documented scan of an open port reports it open', LIMIT, async (t) => {
  await listen(t, (connection) => connection.end(), '127.0.0.1', PORT);
  assert.deepEqual(await run(t, node(...SCAN)), {
    status: 0, stderr: '', stdout: 'Connecting to 127.0.0.1...\n[OK] TCP port 54321 is open\n',
  });
});

const noEnvS = cannotRun('/usr/bin/env', '-S', 'true') && 'env has no -S, which the first line of the scripts needs';
test('the scripts can be executed directly', { ...PATIENCE, skip: noEnvS }, async (t) => {
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

const skip = noIPv6() || noMountedHosts();
const LOOKUPS: [condition: string, hosts: string[], env: NodeJS.ProcessEnv][] = [
  ['/etc/hosts lists ::1 as localhost first', ['::1', '127.0.0.1'], {}],
  ['Node is told to list IPv6 addresses first', ['127.0.0.1', '::1'], { NODE_OPTIONS: '--dns-result-order=ipv6first' }],
];
for (const [condition, hosts, env] of LOOKUPS) {
  test(`the lines are the same if ${condition}`, { ...LIMIT, skip }, async (t) => {
    const file = join(scratch(t), 'hosts');
    writeFileSync(file, hosts.map((address) => `${address} localhost\n`).join(''));
    // In a mount namespace of its own, so that the machine's file stays as it is.
    const mounted = [...unshare('--mount'), 'sh', '-c', 'mount --bind "$0" /etc/hosts && exec "$@"', file];
    await listen(t, (connection) => connection.end(), '::1', PORT); // for a script that takes the IPv6 address
    await asDocumented(t, (script, ...args) => [...mounted, ...node(script, ...args)], env);
  });
}
