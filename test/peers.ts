/** The other side of the scripts: bare sockets, which are closed when the test ends. */
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import type { TestContext } from 'node:test';

/** Listens, and hands each connection to talk(). Resolves to the port, chosen by the system if it is 0. */
export function listen(
  t: TestContext, talk: (connection: Socket) => unknown, host = '127.0.0.1', port = 0,
): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer({ allowHalfOpen: true }, (connection) => {
      t.after(() => connection.destroy());
      connection.on('error', () => {}); // the script may reset; the test looks at its output
      talk(connection);
    });
    server.on('error', reject);
    server.listen(port, host, () => resolve((server.address() as AddressInfo).port));
    t.after(() => server.close());
  });
}

/** Connects to a port, and can half-close, as the client of an echo server must. Rejects if it is refused. */
export function dial(t: TestContext, port: number, host = '127.0.0.1'): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = connect({ port, host, allowHalfOpen: true }, () => resolve(socket));
    socket.on('error', reject); // once connected, this has no effect
    t.after(() => socket.destroy());
  });
}
