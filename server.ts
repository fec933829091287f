#!/usr/bin/env -S npx ts-node
/**
 * An echo server (RFC 862): it accepts one TCP connection, prints what it
 * receives, sends the same bytes back, and ends when the client has ended.
 *
 *     npx ts-node server.ts [host] [port]
 *
 * It prints this, while client.ts runs in another terminal:
 *
 *     Server started on localhost, listening on TCP port 54321
 *     Incoming connection from 127.0.0.1:58666...
 *     Received following data: Hello World!
 *     Server is shutting down. Bye!
 */
import { lookup } from 'node:dns/promises';
import { type AddressInfo, createServer, isIPv6, type Socket } from 'node:net';

const HOST = 'localhost';
const PORT = 54321;
const EVERY_ADDRESS = '0.0.0.0'; // INADDR_ANY, see ip(7)
const BACKLOG = 1; // connections that may wait for accept(), see listen(2)
const BUFFER_SIZE = 1024; // bytes that one line shows at most, as one recv(1024) would give them
const BYE = 'Server is shutting down. Bye!';

const USAGE = `Usage: npx ts-node server.ts [host] [port]

Echoes what one TCP client sends, then ends.

  host        IPv4 address, IPv6 address or name (looked up as IPv4) to
              listen on; '' for every IPv4 address (default: ${HOST})
  port        0 to 65535; 0 lets the system choose (default: ${PORT})
  -h, --help  show this help`;

process.stdout.on('error', ({ code }: NodeJS.ErrnoException) => { // EPIPE: our reader has gone, and the echo goes on
  if (code !== 'EPIPE' && process.exitCode === undefined) fail(`cannot print (${code})`, 1);
});

const args = process.argv.slice(2);
const [host = HOST, port = String(PORT), surplus] = args;
const option = args.find((arg) => arg.startsWith('-'));

if (args.includes('-h') || args.includes('--help')) console.log(USAGE);
else if (option !== undefined) fail(`unknown option "${option}"`, 2);
else if (surplus !== undefined) fail(`one argument too many: "${surplus}"`, 2);
else if (!/^\d{1,5}$/.test(port) || Number(port) > 65535)
  fail(`port "${port}" is not a whole number from 0 to 65535`, 2);
else serve(host || EVERY_ADDRESS, Number(port));

/**
 * Listens on host and port until one client has come, and echoes to that one.
 * Fails where the name is unknown (ENOTFOUND), and where bind() or listen() do
 * (EADDRINUSE, EACCES, EADDRNOTAVAIL and others, see bind(2)).
 */
async function serve(host: string, port: number): Promise<void> {
  const cannotListen = (error: NodeJS.ErrnoException) =>
    fail(`cannot listen on ${host} port ${port} (${error.code})`, 1);

  // Family 4 is AF_INET: a name becomes an IPv4 address. An address stays as it is.
  const found = await lookup(host, { family: 4 }).catch(cannotListen);
  if (!found) return;

  // Half-open: at the client's EOF it is ours to close, once all is echoed.
  const server = createServer({ allowHalfOpen: true });
  server.listen({ host: found.address, port, backlog: BACKLOG }); // socket(AF_INET, SOCK_STREAM), bind(), listen()
  server.on('error', cannotListen);
  server.on('listening', () => {
    const bound = server.address() as AddressInfo; // getsockname(): the port is the system's choice where we gave 0
    console.log(`Server started on ${host}, listening on TCP port ${bound.port}`);
  });

  // accept(): it returns a new socket, and we talk on that one. The one that listened has done its work.
  server.on('connection', (connection) => {
    server.close(); // before Node can accept another: whoever is still in the backlog gets an RST
    console.log(`Incoming connection from ${peerOf(connection)}...`);
    echo(connection);
  });

  for (const signal of ['SIGINT', 'SIGTERM']) { // Ctrl-C and kill(1)
    process.on(signal, () => {
      process.stdout.write(`${BYE}\n`, () => process.exit(0)); // which closes every socket
      setTimeout(() => process.exit(0), 1000); // so long we wait for a slow reader
    });
  }
}

/**
 * Prints all that comes on the connection and sends it back, up to the client's
 * EOF; then closes. Fails where the connection breaks (ECONNRESET, EPIPE).
 */
function echo(connection: Socket): void {
  // Streaming: the bytes of a character that is not complete yet wait for the next receive.
  const decoder = new TextDecoder('utf-8', { ignoreBOM: true });
  const line = (text: string) => (text === '' ? '' : `Received following data: ${visible(text)}\n`);

  // recv(): Node calls us each time that bytes have come, with up to 64 KiB. This is the loop.
  connection.on('data', (arrived) => {
    connection.pause(); // until all is printed and sent: a reader or a client that is slow holds us back
    const lines: string[] = [];
    for (let start = 0; start < arrived.length; start += BUFFER_SIZE) {
      const received = arrived.subarray(start, start + BUFFER_SIZE);
      lines.push(line(decoder.decode(received, { stream: true })));
    }
    process.stdout.write(lines.join(''), () => {
      connection.write(arrived, () => connection.resume()); // sendall()
    });
  });

  connection.on('end', () => { // recv() returned nothing: the client's FIN
    // What is left of a character; and once all is printed and sent, our FIN: shutdown(), and then close().
    process.stdout.write(line(decoder.decode()), () => connection.end());
  });
  connection.on('error', (error: NodeJS.ErrnoException) => fail(`connection lost (${error.code})`, 1));
  connection.on('close', () => console.log(BYE));
}

/** The text with its control characters, save tab and newline, as \x1b and the like: they could command a terminal. */
function visible(text: string): string {
  const escape = (character: string) => `\\x${character.charCodeAt(0).toString(16).padStart(2, '0')}`;
  return text.replace(/[\0-\x08\x0b-\x1f\x7f-\x9f]/g, escape); // C0, DEL and C1
}

/** The client's address and port, as 127.0.0.1:58666 or [::1]:58666. There is none where it has reset already. */
function peerOf({ remoteAddress, remotePort }: Socket): string {
  if (remoteAddress === undefined) return 'an unknown address';
  return isIPv6(remoteAddress) ? `[${remoteAddress}]:${remotePort}` : `${remoteAddress}:${remotePort}`;
}

/** The one way to fail: says on stderr what failed, and sets the exit status, 1 at run time and 2 for wrong usage. */
function fail(what: string, status: 1 | 2): void {
  console.error(`server.ts: ${what}`);
  if (status === 2) console.error('Usage: npx ts-node server.ts [host] [port]');
  process.exitCode = status;
}
