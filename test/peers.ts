/** The other side of the scripts: bare sockets, which the end of the test closes. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';

/** Listens and hands each connection that comes to talk(). Resolves to the port, chosen by the system where it is 0. */
export function listen(
  t: TestContext, talk: (connection: Socket) => void, host = '127.0.0.1', port = 0,
): Promise<number> {
  return new Promise((resolve, reject) => {
    const connections = new Set<Socket>();
    const server = createServer({ allowHalfOpen: true }, (connection) => {
      connections.add(connection);
      connection.on('error', () => {}); // the peer is free to break off; the test looks at what it printed
      talk(connection);
    });
    server.on('error', reject);
    server.listen(port, host, () => resolve((server.address() as AddressInfo).port));
    t.after(() => {
      for (const connection of connections) connection.destroy();
      server.close();
    });
  });
}

/** Listens for one connection, which it resolves to when it comes. */
export async function accepted(t: TestContext): Promise<{ port: number; connection: Promise<Socket> }> {
  let accept: (connection: Socket) => void = () => {};
  const connection = new Promise<Socket>((resolve) => { accept = resolve; });
  return { port: await listen(t, (socket) => accept(socket)), connection };
}

/** A port of 127.0.0.1 at which nothing listens. */
export function closedPort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer().on('error', reject).listen(0, '127.0.0.1', () => {
      const { port } = server.address() as AddressInfo;
      server.close(() => resolve(port));
    });
  });
}

/** Connects to a port, with the half-close that a client of an echo server needs. Rejects where it is refused. */
export function dial(t: TestContext, port: number, host = '127.0.0.1'): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = connect({ port, host, allowHalfOpen: true }, () => resolve(socket));
    socket.on('error', reject); // after the connection stands, this does nothing
    t.after(() => socket.destroy());
  });
}

/** All that comes from the socket up to EOF. Rejects where the connection breaks. */
export function receiveAll(socket: Socket): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const pieces: Buffer[] = [];
    socket.on('data', (piece) => pieces.push(piece));
    socket.on('end', () => resolve(Buffer.concat(pieces)));
    socket.on('error', reject);
  });
}

/**
 * The server that the document describes, one connection of it: what recv() of at most
 * 1,024 bytes gives is sent back, until nothing comes any more; then it closes.
 */
export async function documentedServer(connection: Socket): Promise<void> {
  for await (const arrived of connection.iterator({ destroyOnReturn: false })) {
    for (let start = 0; start < arrived.length; start += 1024) {
      const piece = arrived.subarray(start, start + 1024);
      await new Promise((sent) => connection.write(piece, sent)); // sendall()
    }
  }
  connection.end();
}

/** The environment in which Node runs the code before the script. */
export function preload(t: TestContext, code: string): NodeJS.ProcessEnv {
  const folder = mkdtempSync(join(tmpdir(), 'preload-'));
  t.after(() => rmSync(folder, { recursive: true }));
  const file = join(folder, 'preload.js');
  writeFileSync(file, code);
  return { NODE_OPTIONS: `--require ${file}` };
}
